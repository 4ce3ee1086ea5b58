// Objects: what is there, an editor with the analyzers' findings, and what became of each field in the processes.
import { useEffect, useState } from "preact/hooks";
import { fromId, live, wanted } from "../live.js";
import { short } from "../format.js";
import { FILE, analyze, apply, get, objects, yaml } from "../api.js";
import { Badge, Card, Empty, Findings, Table, useLoaded } from "../parts.jsx";
import { drop, history } from "../change.jsx";

const NEW = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews}
`;

function Editor({ item, onDone }) {
  const [text, setText] = useState(NEW);
  const [findings, setFindings] = useState([]);
  const [told, setTold] = useState(null);
  useEffect(() => { if (item) yaml(item.object).then(setText, (error) => setTold({ bad: true, text: error.message })); }, [item]);
  useEffect(() => {
    const timer = setTimeout(() => analyze(text).then((found) => setFindings(found.diagnostics.filter((it) => it.file === FILE)), () => {}), 300);
    return () => clearTimeout(timer);
  }, [text]);
  const send = (dryRun) => apply(text, dryRun).then(
    (done) => {
      const words = done.changes.map((it) => `${it.kind.toLowerCase()}/${it.name} ${it.action}`).join(", ");
      if (!dryRun && item) history.value = [...history.value, { title: `edit of ${item.key.name}`, replaced: [{ key: item.key, object: item.object }], at: Date.now() }];
      setTold({ text: dryRun ? `It would be: ${words}` : words });
      if (!dryRun) onDone?.();
    },
    (error) => { setTold({ bad: true, text: error.message }); if (error.diagnostics?.length) setFindings(error.diagnostics); },
  );
  return (
    <Card title={item ? `${item.key.kind} ${item.key.namespace}/${item.key.name}` : "A new object"}>
      <textarea class="editor" aria-label="YAML" spellcheck={false} rows={Math.min(40, Math.max(12, text.split("\n").length + 1))} value={text} onInput={(event) => setText(event.currentTarget.value)} />
      <Findings of={findings} />
      <div class="row">
        <button type="button" class="primary" onClick={() => send(false)}>Apply</button>
        <button type="button" onClick={() => send(true)}>Try</button>
        {item && <button type="button" onClick={() => drop(`delete of ${item.key.name}`, [item.key]).then(onDone, (error) => setTold({ bad: true, text: error.message }))}>Delete</button>}
        <span role="status" class={told?.bad ? "bad" : "good"}>{told?.text}</span>
      </div>
    </Card>
  );
}

/** What a process makes of each field: applied, ignored or refused. */
function Fields() {
  const names = live.value.workloads.filter((it) => it.admin && wanted(it.name)).map((it) => `${it.name}.${it.namespace}`);
  const [name, setName] = useState("");
  const [all, setAll] = useState(false);
  const chosen = name || names[0];
  const loaded = useLoaded(() => (chosen ? get(`/console/processes/${encodeURIComponent(chosen)}/fields`) : null), [chosen, live.value.version]);
  const resources = Array.isArray(loaded.value) ? loaded.value : [];
  const count = (state) => resources.reduce((sum, it) => sum + (it[state]?.length ?? 0), 0);
  const states = all ? ["refused", "ignored", "applied"] : ["refused", "ignored"];
  const rows = states.flatMap((state) => resources.flatMap((it) => (it[state] ?? []).map((field) => ({ id: `${it.kind} ${it.name} ${state} ${field}`, cells: () => [
    `${it.kind} ${it.name}`, <Badge kind={state === "refused" ? "bad" : state === "ignored" ? "poor" : "good"}>{state}</Badge>, field,
  ] }))));
  return (
    <Card title="What processes make of it" actions={
      <>
        <label><input type="checkbox" checked={all} onChange={(event) => setAll(event.currentTarget.checked)} /> applied ones too</label>
        <label>Process <select value={chosen} onChange={(event) => setName(event.currentTarget.value)}>{names.slice(0, 200).map((it) => <option key={it}>{it}</option>)}</select></label>
      </>
    }>
      {loaded.error ? <Empty>{loaded.error.message}</Empty> : !chosen ? <Empty>No process of this machine is connected.</Empty> : !loaded.value ? <Empty>…</Empty> : (
        <>
          <p data-applied={count("applied")}>{resources.length} resources: {count("applied")} fields applied, {count("ignored")} ignored, {count("refused")} refused.</p>
          {rows.length > 0 && <Table label="Fields" head={["Resource", "", "Field"]} rows={rows} />}
        </>
      )}
    </Card>
  );
}

/** For whom an object counts: policies for workloads, as the control plane compiles them; routes and services for who calls now. */
function Used({ item }) {
  const { kind, namespace, name } = item.key;
  const spec = item.object.spec ?? {};
  const isPolicy = ["PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"].includes(kind);
  const held = useLoaded(() => (isPolicy ? get("/policies") : null), [isPolicy, live.value.version]);
  const is = (key) => key && key.kind === kind && key.namespace === namespace && key.name === name;
  const full = (host) => (host.includes(".") ? host : `${host}.${namespace}.svc.cluster.local`);
  const hosts = new Set((kind === "Service" ? [name] : kind === "DestinationRule" ? [spec.host ?? ""] : kind === "VirtualService" ? spec.hosts ?? [] : []).map(full));
  const calls = live.value.edges.filter((edge) => hosts.has(edge.host));
  const rows = isPolicy
    ? (held.value?.items ?? []).filter((it) => it.policies.some((row) => is(row.object)) || [...it.ports, it.other_ports].some((port) => is(port?.by))).map((it) => [it.workload, "lets in by it"])
    : [
        ...(spec.gateways ?? []).filter((it) => it !== "mesh").map((it) => [it, "gateway"]),
        ...new Map(calls.map((edge) => [fromId(edge), [fromId(edge), `calls ${short(edge.host)}`]])).values(),
      ];
  if (!isPolicy && hosts.size === 0) return null;
  return (
    <Card title="Where it is used">
      {isPolicy && !held.value ? <Empty>{held.error?.message ?? "…"}</Empty> : rows.length === 0 ? <Empty>{isPolicy ? "No workload is meant by it." : "Nobody called it in the last quarter of an hour."}</Empty> : (
        <Table label="Where it is used" head={["Workload", ""]} rows={rows.map(([who, how]) => ({ id: who, cells: [who, how] }))} />
      )}
    </Card>
  );
}

export function Config({ path }) {
  const loaded = useLoaded(() => objects(), [live.value.version]);
  const id = (it) => `${it.key.kind}/${it.key.namespace}/${it.key.name}`;
  const items = (loaded.value ?? []).filter((it) => wanted(id(it)));
  const item = loaded.value?.find((it) => id(it) === path.join("/"));
  return (
    <>
      <Card title={`${items.length} objects`} actions={<a href="#/config/new">New</a>}>
        {loaded.error && <Empty>{loaded.error.message}</Empty>}
        <Table label="Objects" head={["Kind", "Namespace", "Name", "Since"]} onRow={(key) => (location.hash = `#/config/${key}`)}
          rows={items.map((it) => ({ id: id(it), cells: () => [it.key.kind, it.key.namespace, it.key.name, new Date(it.created).toLocaleString()] }))} />
      </Card>
      {(item || path[0] === "new") && <Editor key={path.join("/")} item={item} onDone={() => item || (location.hash = "#/config")} />}
      {item && <Used key={`used ${id(item)}`} item={item} />}
      <Fields />
    </>
  );
}
