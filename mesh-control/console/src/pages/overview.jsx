// How the mesh is, in one look: all requests, the services, and what needs attention.
import { live, services } from "../live.js";
import { health, millis, percent, rate, short } from "../format.js";
import { Badge, Card, Chart, Empty, Figures, Table, useLoaded, useSome } from "../parts.jsx";
import { post } from "../api.js";

export function Overview() {
  const { total, workloads, proxies, left_out, version } = live.value;
  const found = useLoaded(() => post("/analyze", { files: [] }), [version]);
  const behind = proxies.filter((proxy) => Object.values(proxy.types).some((type) => type.state === "ERROR" || type.state === "STALE"));
  const lost = workloads.filter((workload) => workload.lost);
  const findings = (found.value?.diagnostics ?? []).filter((it) => it.level !== "info");
  // Of many, those that fail come first: nobody looks through a thousand names for them.
  const ordered = services.value.length > 100 ? [...services.value].sort((a, b) => b.failed - a.failed || b.rate - a.rate) : services.value;
  const [notes, rest] = useSome([
    ...behind.map((proxy) => <li key={proxy.name}><Badge kind="bad">behind</Badge> {proxy.name}: {Object.entries(proxy.types).filter(([, it]) => it.error).map(([name, it]) => `${name} refused: ${it.error}`).join("; ") || "has not answered yet"}</li>),
    ...lost.map((it) => <li key={`${it.name}.${it.namespace}`}><Badge kind="poor">lost</Badge> {it.name}.{it.namespace} lost its connection to the control plane</li>),
    ...findings.map((it, index) => <li key={index}><Badge kind={it.level === "error" ? "bad" : "poor"}>{it.code}</Badge> {it.message}</li>),
  ], 50);
  return (
    <>
      <Card title="All requests"><Figures of={total} /><Chart title="Requests of the whole mesh" /></Card>
      <div class="columns">
        <Card title="Services">
          {services.value.length === 0 ? <Empty>Nothing was called in the last quarter of an hour.</Empty> : (
            <Table label="Services" head={["Service", "Requests/s", "Failed", "p95", ""]}
              onRow={(host) => (location.hash = `#/services/${encodeURIComponent(host)}`)}
              rows={ordered.map((it) => {
                const errors = it.rate ? it.failed / it.rate : 0;
                return { id: it.host, cells: () => [short(it.host), rate(it.rate), percent(errors), millis(it.p95 || null), <Badge kind={health(errors, it.rate)}>{health(errors, it.rate)}</Badge>] };
              })} />
          )}
        </Card>
        <Card title="To look at">
          <ul class="notes">
            {notes}
            {left_out > 0 && <li><Badge kind="poor">too many</Badge> more pairs of workloads than are kept; {left_out} times one was left out</li>}
          </ul>
          {rest}
          {behind.length + lost.length + findings.length + left_out === 0 && <Empty>Nothing. {workloads.length} workloads run, {proxies.length} are connected.</Empty>}
        </Card>
      </div>
    </>
  );
}
