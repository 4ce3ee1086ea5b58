// Every service that is called: how often, with what success; its endpoints as its callers see them, and their certificates.
import { live, services } from "../live.js";
import { get } from "../api.js";
import { health, millis, percent, rate, short } from "../format.js";
import { Badge, Card, Chart, Empty, Lock, Table, useLoaded } from "../parts.jsx";

/** The endpoints of a host, each as bad as any of its callers finds it. */
async function endpoints(host, callers) {
  const all = new Map();
  const pages = await Promise.all(callers.map((name) => get(`/console/processes/${encodeURIComponent(name)}/clusters`).then((page) => [name, page], () => null)));
  for (const [caller, page] of pages.filter(Boolean))
    for (const cluster of page.clusters.filter((it) => it.name.endsWith(`|${host}`) || it.name === host))
      for (const endpoint of cluster.endpoints) {
        const known = all.get(endpoint.address) ?? { ...endpoint, in_flight: 0, ejected_by: [], unreachable_by: [], seen_by: 0 };
        known.in_flight += endpoint.in_flight;
        known.seen_by += 1;
        if (endpoint.ejected || endpoint.fails_health_check) known.ejected_by.push(caller);
        if (endpoint.unreachable) known.unreachable_by.push(caller);
        all.set(endpoint.address, known);
      }
  return [...all.values()].sort((a, b) => a.address.localeCompare(b.address));
}

async function certificates(workloads) {
  return Promise.all(workloads.map(async (it) => {
    const name = `${it.name}.${it.namespace}`;
    return { name, ...(await get(`/console/processes/${encodeURIComponent(name)}/certs`).catch(() => ({}))) };
  }));
}

function Service({ service }) {
  // Who calls it knows its endpoints; of very many callers some do.
  const callers = new Set(service.edges.map((edge) => edge.from.workload));
  const asked = live.value.workloads.filter((it) => it.admin && callers.has(it.workload)).slice(0, 20);
  const workloads = live.value.workloads.filter((it) => it.admin);
  const second = Math.floor(live.value.at / 3000);
  const seen = useLoaded(() => endpoints(service.host, asked.map((it) => `${it.name}.${it.namespace}`)), [service.host, second]);
  const behind = new Set(service.edges.map((edge) => edge.to.workload));
  const certs = useLoaded(() => certificates(workloads.filter((it) => behind.has(it.workload)).slice(0, 20)), [service.host]);
  return (
    <>
      <Card title={short(service.host)}><Chart query={`?host=${encodeURIComponent(service.host)}`} title={service.host} /></Card>
      <Card title="Versions and callers">
        <Table label="Versions and callers" head={["From", "To", "Version", "Requests/s", "Failed", "p50", "p95", "Connection"]}
          rows={service.edges.map((edge, index) => ({ id: String(index), cells: [edge.from.workload, edge.to.workload, edge.to.version, rate(edge.rate), percent(edge.errors), millis(edge.p50), millis(edge.p95), <Lock mtls={edge.mtls} />] }))} />
      </Card>
      <Card title="Endpoints">
        {seen.value?.length ? (
          <Table label="Endpoints" head={["Address", "Workload", "Health", "In flight", "mTLS", "Seen by"]}
            rows={seen.value.map((it) => ({ id: it.address, cells: [
              it.address, it.workload ?? "–",
              <Badge kind={it.ejected_by.length ? "bad" : it.unreachable_by.length ? "poor" : "good"}>{it.ejected_by.length ? `ejected by ${it.ejected_by.join(", ")}` : it.unreachable_by.length ? "unreachable" : "healthy"}</Badge>,
              it.in_flight, it.mtls ? "yes" : "no", it.seen_by,
            ] }))} />
        ) : <Empty>No caller on this machine knows an endpoint of it.</Empty>}
      </Card>
      <Card title="Certificates">
        <Table label="Certificates" head={["Workload", "Identity", "Valid until", "Left"]}
          rows={(certs.value ?? []).map((it) => ({ id: it.name, cells: [it.name, it.identity ?? "none", it.valid_until ?? "–", it.seconds_left == null ? "–" : <Badge kind={it.seconds_left < 600 ? "bad" : "good"}>{Math.round(it.seconds_left / 60)} min</Badge>] }))} />
      </Card>
    </>
  );
}

export function Services({ path }) {
  const chosen = services.value.find((it) => it.host === path[0]);
  return (
    <>
      <Card title={`${services.value.length} services`}>
        {services.value.length === 0 ? <Empty>Nothing was called in the last quarter of an hour.</Empty> : (
          <Table label="Services" head={["Service", "Requests/s", "Failed", "p95", "Versions", "Callers", ""]}
            onRow={(host) => (location.hash = `#/services/${encodeURIComponent(host)}`)}
            rows={services.value.map((it) => {
              const errors = it.rate ? it.failed / it.rate : 0;
              const of = (side) => { const all = [...new Set(it.edges.map(side))]; return all.slice(0, 5).join(", ") + (all.length > 5 ? ` and ${all.length - 5} more` : ""); };
              return { id: it.host, cells: () => [short(it.host), rate(it.rate), percent(errors), millis(it.p95 || null), of((edge) => edge.to.version), of((edge) => edge.from.workload), <Badge kind={health(errors, it.rate)}>{health(errors, it.rate)}</Badge>] };
            })} />
        )}
      </Card>
      {chosen && <Service service={chosen} key={chosen.host} />}
    </>
  );
}
