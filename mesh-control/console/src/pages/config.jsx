// Objects: what is there, an editor with the analyzers' findings, and what became of each field in the processes.
import { useEffect, useState } from "preact/hooks";
import { filter, live } from "../live.js";
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

/** What the processes make of each field: applied, ignored or refused. */
function Fields() {
  const names = live.value.workloads.filter((it) => it.admin).map((it) => `${it.name}.${it.namespace}`);
  const [name, setName] = useState("");
  const chosen = name || names[0];
  const loaded = useLoaded(() => (chosen ? get(`/console/processes/${encodeURIComponent(chosen)}/fields`) : null), [chosen, live.value.version]);
  const rows = [];
  const walk = (value, path) => {
    if (Array.isArray(value)) value.forEach((it) => walk(it, path));
    else if (value && typeof value === "object") {
      const title = value.name ?? path;
      for (const state of ["refused", "ignored"]) for (const field of Array.isArray(value[state]) ? value[state] : []) rows.push({ title, state, field: typeof field === "string" ? field : JSON.stringify(field) });
      for (const [key, inner] of Object.entries(value)) if (key !== "refused" && key !== "ignored") walk(inner, title || key);
    }
  };
  walk(loaded.value, "");
  return (
    <Card title="What processes make of it" actions={
      <label>Process <select value={chosen} onChange={(event) => setName(event.currentTarget.value)}>{names.map((it) => <option key={it}>{it}</option>)}</select></label>
    }>
      {loaded.error ? <Empty>{loaded.error.message}</Empty> : rows.length === 0 ? <Empty>Every field it was told is applied.</Empty> : (
        <Table label="Fields that are not applied" head={["Resource", "", "Field"]} rows={rows.map((it, index) => ({ id: String(index), cells: [it.title, <Badge kind={it.state === "refused" ? "bad" : "poor"}>{it.state}</Badge>, it.field] }))} />
      )}
    </Card>
  );
}

export function Config({ path }) {
  const loaded = useLoaded(() => objects(), [live.value.version]);
  const wanted = filter.value.trim().toLowerCase();
  const items = (loaded.value ?? []).filter((it) => !wanted || `${it.key.kind}/${it.key.namespace}/${it.key.name}`.toLowerCase().includes(wanted));
  const id = (it) => `${it.key.kind}/${it.key.namespace}/${it.key.name}`;
  const item = items.find((it) => id(it) === path.join("/"));
  return (
    <>
      <Card title={`${items.length} objects`} actions={<a href="#/config/new">New</a>}>
        {loaded.error && <Empty>{loaded.error.message}</Empty>}
        <Table label="Objects" head={["Kind", "Namespace", "Name", "Since"]} onRow={(key) => (location.hash = `#/config/${key}`)}
          rows={items.map((it) => ({ id: id(it), cells: [it.key.kind, it.key.namespace, it.key.name, new Date(it.created).toLocaleString()] }))} />
      </Card>
      {(item || path[0] === "new") && <Editor key={path.join("/")} item={item} onDone={() => item || (location.hash = "#/config")} />}
      <Fields />
    </>
  );
}
