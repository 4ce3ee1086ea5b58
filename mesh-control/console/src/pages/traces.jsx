// The last traces: a list, and one of them as a waterfall in which every attempt is a bar of its own.
import { useState } from "preact/hooks";
import { filter, live } from "../live.js";
import { get } from "../api.js";
import { clock, micros } from "../format.js";
import { Badge, Card, Empty, Table, useLoaded } from "../parts.jsx";

function rows(spans) {
  const known = new Set(spans.map((span) => span.id));
  const children = new Map();
  for (const span of spans) {
    const parent = known.has(span.parent) ? span.parent : "";
    children.set(parent, [...(children.get(parent) ?? []), span]);
  }
  const flat = [];
  const walk = (parent, depth) => (children.get(parent) ?? []).forEach((span) => { flat.push({ span, depth }); walk(span.id, depth + 1); });
  walk("", 0);
  return flat;
}

function Waterfall({ id }) {
  const loaded = useLoaded(() => get(`/console/traces/${id}`), [id, Math.floor(live.value.at / 5000)]);
  const [open, setOpen] = useState(null);
  if (loaded.error) return <Card><Empty>{loaded.error.message}</Empty></Card>;
  const spans = loaded.value?.spans ?? [];
  if (spans.length === 0) return null;
  const start = Math.min(...spans.map((span) => span.start));
  const length = Math.max(1, Math.max(...spans.map((span) => span.start + span.duration)) - start);
  return (
    <Card title={`Trace ${id}`}>
      <p>{spans.length} spans, {new Set(spans.map((span) => span.service)).size} services, {micros(length)}</p>
      <ol class="waterfall" aria-label="Spans">
        {rows(spans).map(({ span, depth }) => {
          const resend = span.attributes.find(([name]) => name === "http.request.resend_count")?.[1];
          return (
            <li key={span.id} data-service={span.service} data-kind={span.kind} data-error={span.is_error}>
              <button type="button" aria-expanded={open === span.id} onClick={() => setOpen(open === span.id ? null : span.id)}>
                <span class="name" style={{ paddingLeft: `${depth * 14}px` }}>
                  <strong>{span.service}</strong> {span.name} {resend && <Badge kind="poor">attempt {Number(resend) + 1}</Badge>} {span.is_error && <Badge kind="bad">failed</Badge>}
                </span>
                <span class="lane"><span class={`bar ${span.kind} ${span.is_error ? "bad" : ""}`} style={{ left: `${((span.start - start) / length) * 100}%`, width: `${Math.max(0.3, (span.duration / length) * 100)}%` }} /></span>
                <span class="took">{micros(span.duration)}</span>
              </button>
              {open === span.id && <dl class="attributes">{span.attributes.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>}
            </li>
          );
        })}
      </ol>
    </Card>
  );
}

export function Traces({ path }) {
  const [failed, setFailed] = useState(false);
  // Looked for where all of them are, not among the newest alone.
  const query = new URLSearchParams({ find: filter.value.trim(), errors: failed });
  const loaded = useLoaded(() => get(`/console/traces?${query}`), [Math.floor(live.value.at / 3000), `${query}`]);
  const { items = [], kept = 0 } = loaded.value ?? {};
  return (
    <>
      {path[0] && <Waterfall id={path[0]} />}
      <Card title={`${items.length} of ${kept} traces`} actions={<label><input type="checkbox" checked={failed} onChange={(event) => setFailed(event.currentTarget.checked)} /> failed only</label>}>
        {items.length === 0 ? <Empty>None. A process sends its spans here when <code>OTEL_EXPORTER_OTLP_ENDPOINT</code> is {location.origin}.</Empty> : (
          <Table label="Traces" head={["When", "Begins with", "Services", "Spans", "Took", ""]} onRow={(id) => (location.hash = `#/traces/${id}`)}
            rows={items.map((it) => ({ id: it.id, cells: () => [clock(it.start / 1000), `${it.service}: ${it.name}`, it.services.join(", "), it.spans, micros(it.duration), it.is_error && <Badge kind="bad">failed</Badge>] }))} />
        )}
      </Card>
    </>
  );
}
