// Processes and who is connected to whom: machine by machine, process by process.
import { useState } from "preact/hooks";
import { filter, live } from "../live.js";
import { get } from "../api.js";
import { ago } from "../format.js";
import { Badge, Card, Empty, Table, useLoaded } from "../parts.jsx";

const nameOf = (workload) => `${workload.name}.${workload.namespace}`;

function Process({ workload }) {
  const name = nameOf(workload);
  const clusters = useLoaded(() => get(`/console/processes/${encodeURIComponent(name)}/clusters`), [name]);
  const plane = useLoaded(() => get(`/console/processes/${encodeURIComponent(name)}/control_plane`), [name]);
  const ways = (clusters.value?.clusters ?? []).flatMap((cluster) => cluster.endpoints.map((endpoint) => ({ cluster: cluster.name, ...endpoint })));
  return (
    <Card title={name}>
      {clusters.error ? <Empty>{clusters.error.message}</Empty> : (
        <Table label={`Endpoints of ${name}`} head={["Cluster", "Endpoint", "Workload", "Health", "In flight", "Latency"]}
          rows={ways.map((it, index) => ({ id: `${it.cluster} ${it.address} ${index}`, cells: [
            it.cluster, it.address, it.workload ?? "–",
            <Badge kind={it.ejected || it.fails_health_check ? "bad" : it.unreachable ? "poor" : "good"}>{it.ejected ? "ejected" : it.fails_health_check ? "fails its check" : it.unreachable ? "unreachable" : "healthy"}</Badge>,
            it.in_flight, it.latency_ms == null ? "–" : `${it.latency_ms.toFixed(1)} ms`,
          ] }))} />
      )}
      {plane.value && <details><summary>Its connection to the control plane</summary><pre>{JSON.stringify(plane.value, null, 2)}</pre></details>}
    </Card>
  );
}

export function Topology({ path }) {
  const [chosen, choose] = useState(path[0] ?? null);
  const wanted = filter.value.trim().toLowerCase();
  const all = live.value.workloads.filter((it) => !wanted || nameOf(it).toLowerCase().includes(wanted));
  const hosts = Map.groupBy ? Map.groupBy(all, (it) => it.address) : all.reduce((map, it) => map.set(it.address, [...(map.get(it.address) ?? []), it]), new Map());
  const calls = (workload) => live.value.edges.filter((edge) => edge.from.workload === workload.workload && edge.rate > 0).map((edge) => edge.to.workload);
  const pick = all.find((it) => nameOf(it) === chosen);
  return (
    <>
      <Card title={`${all.length} processes at ${hosts.size} addresses`}>
        {all.length === 0 && <Empty>No workload is connected.</Empty>}
        <ul class="hosts">
          {[...hosts].sort().map(([address, workloads]) => (
            <li key={address}>
              <h3>{address}</h3>
              {workloads.map((it) => (
                <button type="button" key={nameOf(it)} class={`process ${chosen === nameOf(it) ? "chosen" : ""}`} onClick={() => choose(nameOf(it))}>
                  <strong>{it.name}</strong> {it.gateway && <Badge>gateway</Badge>} {it.lost && <Badge kind="poor">lost</Badge>} {it.unhealthy && <Badge kind="bad">unhealthy</Badge>}
                  <small>{it.process ? `process ${it.process}` : "process of elsewhere"} · port {it.ports.map((port) => port.containerPort).join(", ") || "–"} · for {ago(it.since)}</small>
                  <small>{calls(it).length ? `calls ${[...new Set(calls(it))].join(", ")}` : "calls nobody now"}</small>
                </button>
              ))}
            </li>
          ))}
        </ul>
      </Card>
      {pick && <Process workload={pick} key={chosen} />}
    </>
  );
}
