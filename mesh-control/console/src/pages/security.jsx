// Who may call whom, who does, how safely, and what was denied.
import { useEffect, useState } from "preact/hooks";
import { edges, fromId, live, toId, wanted } from "../live.js";
import { objects, post } from "../api.js";
import { rate, short } from "../format.js";
import { Badge, Card, Empty, Lock, Table, useLoaded } from "../parts.jsx";

const KINDS = ["PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"];

/** `spiffe://cluster.local/ns/default/sa/ratings` as `default/ratings`, whole when pointed at. */
const Identity = ({ of }) => (of ? <span title={of}>{of.replace(/^spiffe:\/\/[^/]*\/ns\/([^/]*)\/sa\//, "$1/")}</span> : "–");

/** What the control plane says of a made-up request: by which rule it is let in or refused. */
function Why({ of }) {
  const [asked, setAsked] = useState(of);
  const [told, setTold] = useState(null);
  const change = (name) => (event) => setAsked({ ...asked, [name]: event.currentTarget.value });
  const ask = async (wanted) => {
    const { workload, port, from, method, path } = wanted;
    const request = { method, path, host: "", headers: [], from: from || null };
    return post("/authz/check", { workload, port: port ? Number(port) : null, request }).then(setTold, (error) => setTold({ error: error.message }));
  };
  useEffect(() => { setAsked(of); if (of.workload) ask(of); }, [of]);
  return (
    <Card title="Why">
      <form class="row" onSubmit={(event) => { event.preventDefault(); ask(asked); }}>
        <label>Who asks <input value={asked.from} placeholder="nobody known" onInput={change("from")} size="48" /></label>
        <label>Workload <input value={asked.workload} placeholder="reviews-v1" onInput={change("workload")} /></label>
        <label>Port <input value={asked.port} placeholder="its only one" size="6" onInput={change("port")} /></label>
        <label>Method <input value={asked.method} size="6" onInput={change("method")} /></label>
        <label>Path <input value={asked.path} onInput={change("path")} /></label>
        <button type="submit" class="primary" disabled={!asked.workload}>Ask</button>
      </form>
      {told?.error && <Empty>{told.error}</Empty>}
      {told?.verdict && (
        <>
          <p role="status" class="verdict"><Badge kind={told.verdict.allowed ? "good" : "bad"}>{told.verdict.allowed ? "let in" : `refused with ${told.verdict.status}`}</Badge> {told.verdict.reason}</p>
          <Table label="What was asked of it" head={["Asked", "Says"]} rows={told.verdict.steps.map((step, index) => ({ id: String(index), cells: [step.action, step.says] }))} />
        </>
      )}
    </Card>
  );
}

export function Security() {
  const loaded = useLoaded(async () => (await objects()).filter((it) => KINDS.includes(it.key.kind)), [live.value.version]);
  const policies = (loaded.value ?? []).filter((it) => wanted(it.key.name, it.key.namespace, it.key.kind));
  const [why, setWhy] = useState({ workload: "", port: "", from: "", method: "GET", path: "/" });
  const denied = edges.value.flatMap((edge) => edge.outcomes.filter(([it]) => it.code === "403" || it.code === "401" || it.grpc === "7" || it.grpc === "16").map(([it, count]) => ({ edge, it, count })));
  return (
    <>
      <Card title="Who calls whom">
        {edges.value.length === 0 ? <Empty>No calls in the last quarter of an hour.</Empty> : (
          <Table label="Who calls whom" head={["From", "Identity", "To", "Identity", "Requests/s", "Connection"]}
            rows={edges.value.map((edge, index) => ({ id: String(index), cells: () => [fromId(edge), <Identity of={edge.source_principal} />, toId(edge), <Identity of={edge.destination_principal} />, rate(edge.rate), <Lock mtls={edge.mtls} />] }))} />
        )}
      </Card>
      <Card title="Denied">
        {denied.length === 0 ? <Empty>Nothing was denied.</Empty> : (
          <Table label="Denied" head={["From", "To", "Asked for", "Answer", "How often"]}
            onRow={(id) => { const { edge } = denied[Number(id)]; setWhy({ ...why, workload: toId(edge), from: edge.source_principal }); }}
            rows={denied.map(({ edge, it, count }, index) => ({ id: String(index), cells: [fromId(edge), toId(edge), short(edge.host), <Badge kind="bad">{it.code}{it.grpc ? ` grpc ${it.grpc}` : ""} {it.flags !== "-" ? it.flags : ""}</Badge>, count] }))} />
        )}
      </Card>
      <Why of={why} />
      <Card title="Policies">
        {policies.length === 0 ? <Empty>None: every workload with an identity of the mesh may call every other, over mutual TLS.</Empty> : (
          <Table label="Policies" head={["Kind", "Namespace", "Name", "What it says"]} onRow={(id) => (location.hash = `#/config/${id}`)}
            rows={policies.map((it) => ({ id: `${it.key.kind}/${it.key.namespace}/${it.key.name}`, cells: [it.key.kind, it.key.namespace, it.key.name, it.object.spec?.action ?? it.object.spec?.mtls?.mode ?? (it.object.spec?.jwtRules ?? []).map((rule) => rule.issuer).join(", ") ?? ""] }))} />
        )}
      </Card>
    </>
  );
}
