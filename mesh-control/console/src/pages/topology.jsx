// Processes and who is connected to whom: machine by machine, process by process.
import { useState } from "preact/hooks";
import { live, wanted } from "../live.js";
import { get } from "../api.js";
import { ago } from "../format.js";
import { Badge, Card, Empty, Table, useLoaded, useSome } from "../parts.jsx";

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
  const all = live.value.workloads.filter((it) => wanted(nameOf(it), it.address)).sort((a, b) => a.address.localeCompare(b.address) || nameOf(a).localeCompare(nameOf(b)));
  const [drawn, rest] = useSome(all);
  const grouped = (list, of) => list.reduce((map, it) => { const key = of(it); map.get(key)?.push(it) ?? map.set(key, [it]); return map; }, new Map());
  const hosts = grouped(drawn, (it) => it.address);
  const busy = grouped(live.value.edges.filter((edge) => edge.rate > 0), (edge) => edge.from.workload);
  const calls = (workload) => [...new Set((busy.get(workload.workload) ?? []).map((edge) => edge.to.workload))];
  const pick = all.find((it) => nameOf(it) === chosen);
  return (
    <>
      <Card title={`${all.length} processes at ${new Set(all.map((it) => it.address)).size} addresses`}>
        {all.length === 0 && <Empty>No workload is connected.</Empty>}
        <ul class="hosts">
          {[...hosts].map(([address, workloads]) => (
            <li key={address}>
              <h3>{address}</h3>
              {workloads.map((it) => (
                <button type="button" key={nameOf(it)} class={`process ${chosen === nameOf(it) ? "chosen" : ""}`} onClick={() => choose(nameOf(it))}>
                  <strong>{it.name}</strong> {it.gateway && <Badge>gateway</Badge>} {it.lost && <Badge kind="poor">lost</Badge>} {it.unhealthy && <Badge kind="bad">unhealthy</Badge>}
                  <small>{it.process ? `process ${it.process}` : "process of elsewhere"} · port {it.ports.map((port) => port.containerPort).join(", ") || "–"} · for {ago(it.since)}</small>
                  <small>{calls(it).length ? `calls ${calls(it).slice(0, 8).join(", ")}${calls(it).length > 8 ? ` and ${calls(it).length - 8} more` : ""}` : "calls nobody now"}</small>
                </button>
              ))}
            </li>
          ))}
        </ul>
        {rest}
      </Card>
      {pick && <Process workload={pick} key={chosen} />}
    </>
  );
}
