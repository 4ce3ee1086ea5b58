// Who calls whom: workloads and the calls between them, laid out from left to right, with what each call comes to.
import { layout as dagre, Graph as DagreGraph } from "@dagrejs/dagre";
import { useMemo, useRef, useState } from "preact/hooks";
import { edges, filter, fromId, live, toId } from "../live.js";
import { health, millis, percent, rate, short } from "../format.js";
import { Badge, Card, Chart, Empty, Figures, Lock, Padlock, Table } from "../parts.jsx";

/** Workloads drawn at once: more cannot be read, nor laid out while one waits. */
const MOST = 100;
/** Between two looks at which of too many are worth drawing, in milliseconds. */
const STEADY = 15_000;
const WIDTH = 170;
const HEIGHT = 46;

/** One line between two workloads, whatever the hosts and protocols. */
function joined(all) {
  const pairs = new Map();
  for (const edge of all) {
    const [from, to] = [fromId(edge), toId(edge)];
    const id = `${from} → ${to}`;
    const sum = pairs.get(id) ?? { id, from, to, rate: 0, failed: 0, p95: null, mtls: null, parts: [], place: { from: edge.from, to: edge.to } };
    sum.rate += edge.rate;
    sum.failed += edge.rate * edge.errors;
    if (edge.p95 != null) sum.p95 = Math.max(sum.p95 ?? 0, edge.p95);
    if (edge.mtls != null) sum.mtls = sum.mtls !== false && edge.mtls;
    sum.parts.push(edge);
    pairs.set(id, sum);
  }
  return [...pairs.values()];
}

function place(nodes, pairs) {
  const graph = new DagreGraph({ multigraph: false });
  graph.setGraph({ rankdir: "LR", nodesep: 28, ranksep: 130, marginx: 12, marginy: 12 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const id of nodes) graph.setNode(id, { width: WIDTH, height: HEIGHT });
  for (const pair of pairs) graph.setEdge(pair.from, pair.to);
  dagre(graph);
  return graph;
}

/** Of too many those where most fails, then where most is asked; the same ones for a while, so that the picture stays. */
function some(pairs, kept, key) {
  if (kept.current.key !== key) {
    const ids = new Set();
    const nodes = new Set();
    for (const pair of [...pairs].sort((a, b) => b.failed - a.failed || b.rate - a.rate || a.id.localeCompare(b.id))) {
      const more = [pair.from, pair.to].filter((id) => !nodes.has(id));
      if (nodes.size + more.length > MOST) continue;
      more.forEach((id) => nodes.add(id));
      ids.add(pair.id);
      if (ids.size >= 2 * MOST) break;
    }
    kept.current = { key, ids };
  }
  return pairs.filter((pair) => kept.current.ids.has(pair.id));
}

const line = (points) => points.map((point, index) => `${index ? "L" : "M"}${point.x.toFixed(1)},${point.y.toFixed(1)}`).join("");

export function Graph() {
  const pairs = joined(edges.value);
  const [chosen, choose] = useState(null);
  const [idle, setIdle] = useState(true);
  const busy = idle ? pairs : pairs.filter((pair) => pair.rate > 0);
  const count = new Set(busy.flatMap((pair) => [pair.from, pair.to])).size;
  const kept = useRef({});
  const shown = count > MOST ? some(busy, kept, `${filter.value} ${idle} ${Math.floor(live.value.at / STEADY)}`) : busy;
  const names = [...new Set(shown.flatMap((pair) => [pair.from, pair.to]))].sort();
  const shape = shown.map((pair) => pair.id).join();
  // Laid out anew only when who calls whom changes, not with every second's figures.
  const graph = useMemo(() => place(names, shown), [shape]);
  if (names.length === 0) return <Card><Empty>No calls in the last quarter of an hour{edges.value.length ? "" : ", or none that matches"}.</Empty></Card>;
  const pick = shown.find((pair) => pair.id === chosen);
  const sums = new Map();
  for (const pair of busy) sums.set(pair.from, (sums.get(pair.from) ?? 0) + pair.rate);
  const outOf = (id) => sums.get(id) ?? 0;
  return (
    <>
      <Card title={`${count} workloads, ${busy.length} ways`} actions={
        <>
          <label><input type="checkbox" checked={idle} onChange={(event) => setIdle(event.currentTarget.checked)} /> idle ones too</label>
          <a href="/graph.svg" target="_blank">SVG</a> <a href="/graph.dot">DOT</a> <a href="/graph.json" target="_blank">JSON</a>
        </>
      }>
        {names.length < count && <p class="rest" role="status">Drawn are the {names.length} workloads where most fails, then where most is asked. Narrow them down with “Find” above.</p>}
        {(
          <div class="scroll drawing" tabIndex={0} role="region" aria-label="Service graph">
            <svg width={graph.graph().width} height={graph.graph().height} role="group" aria-label="Service graph">
              <defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerUnits="userSpaceOnUse" markerWidth="11" markerHeight="11" orient="auto"><path d="M0,0L8,4L0,8z" class="arrow" /></marker></defs>
              {shown.map((pair) => {
                const points = graph.edge(pair.from, pair.to)?.points ?? [];
                const middle = points[Math.floor(points.length / 2)] ?? { x: 0, y: 0 };
                const errors = pair.rate ? pair.failed / pair.rate : 0;
                const share = outOf(pair.from) ? pair.rate / outOf(pair.from) : 0;
                const traffic = `${rate(pair.rate)}/s${share > 0 && share < 0.995 ? ` · ${percent(share)}` : ""}`;
                const words = `${pair.from} calls ${pair.to}: ${rate(pair.rate)} requests a second, ${percent(errors)} failed, p95 ${millis(pair.p95)}${pair.mtls ? ", mutual TLS" : pair.mtls === false ? ", plaintext" : ""}`;
                return (
                  <g key={pair.id} class={`edge ${health(errors, pair.rate)} ${chosen === pair.id ? "chosen" : ""}`} role="button" tabindex="0"
                    aria-label={words} data-from={pair.from} data-to={pair.to} data-rate={pair.rate} data-mtls={String(pair.mtls)}
                    onClick={() => choose(pair.id)} onKeyDown={(event) => event.key === "Enter" && choose(pair.id)}>
                    <path d={line(points)} class="reach" /><path d={line(points)} class="way" marker-end="url(#arrow)" />
                    {pair.mtls && <Padlock x={middle.x - 3.3 * traffic.length - 14} y={middle.y - 17} />}
                    <text x={middle.x} y={middle.y - 6} text-anchor="middle">
                      {traffic}
                    </text>
                    <text x={middle.x} y={middle.y + 12} text-anchor="middle" class="second">
                      {errors > 0 ? `${percent(errors)} failed · ` : ""}{millis(pair.p95)}
                    </text>
                  </g>
                );
              })}
              {names.map((id) => {
                const { x, y } = graph.node(id);
                const [workload, space] = id.split(/\.(?=[^.]*$)/);
                return (
                  <g key={id} class="node" data-node={id} transform={`translate(${x - WIDTH / 2},${y - HEIGHT / 2})`} role="img" aria-label={id}>
                    <rect width={WIDTH} height={HEIGHT} rx="8" />
                    <text x={WIDTH / 2} y={20} text-anchor="middle">{short(workload.length > 24 ? `${workload.slice(0, 23)}…` : workload)}</text>
                    <text x={WIDTH / 2} y={36} text-anchor="middle" class="second">{space}</text>
                  </g>
                );
              })}
            </svg>
          </div>
        )}
      </Card>
      {pick && (
        <Card title={pick.id} actions={<button type="button" onClick={() => choose(null)}>Close</button>}>
          <Figures of={{ rate: pick.rate, errors: pick.rate ? pick.failed / pick.rate : 0, p50: pick.parts[0].p50, p95: pick.p95, p99: pick.parts[0].p99 }} />
          <Chart query={`?from=${encodeURIComponent(pick.place.from.workload)}&to=${encodeURIComponent(pick.place.to.workload)}`} title={pick.id} />
          <Table label="What was asked for" head={["Host", "Protocol", "Requests/s", "Failed", "p50", "p95", "p99", "Connection", "Answers"]}
            rows={pick.parts.map((edge) => ({ id: edge.host + edge.protocol, cells: [
              short(edge.host), edge.protocol, rate(edge.rate), percent(edge.errors), millis(edge.p50), millis(edge.p95), millis(edge.p99), <Lock mtls={edge.mtls} />,
              edge.outcomes.slice(0, 4).map(([it, count]) => <Badge key={it.code + it.flags + it.grpc} kind={/^5|^0$/.test(it.code) ? "bad" : "idle"}>{it.code}{it.flags && it.flags !== "-" ? ` ${it.flags}` : ""}: {count}</Badge>),
            ] }))} />
        </Card>
      )}
    </>
  );
}
