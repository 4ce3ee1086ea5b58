// Who may call whom, who does, how safely, and what was denied.
import { edges, fromId, live, toId } from "../live.js";
import { objects } from "../api.js";
import { rate, short } from "../format.js";
import { Badge, Card, Empty, Lock, Table, useLoaded } from "../parts.jsx";

const KINDS = ["PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"];

/** `spiffe://cluster.local/ns/default/sa/ratings` as `default/ratings`, whole when pointed at. */
const Identity = ({ of }) => (of ? <span title={of}>{of.replace(/^spiffe:\/\/[^/]*\/ns\/([^/]*)\/sa\//, "$1/")}</span> : "–");

export function Security() {
  const loaded = useLoaded(async () => (await objects()).filter((it) => KINDS.includes(it.key.kind)), [live.value.version]);
  const policies = loaded.value ?? [];
  const denied = edges.value.flatMap((edge) => edge.outcomes.filter(([it]) => it.code === "403" || it.code === "401" || it.grpc === "7" || it.grpc === "16").map(([it, count]) => ({ edge, it, count })));
  return (
    <>
      <Card title="Who calls whom">
        {edges.value.length === 0 ? <Empty>No calls in the last quarter of an hour.</Empty> : (
          <Table label="Who calls whom" head={["From", "Identity", "To", "Identity", "Requests/s", "Connection"]}
            rows={edges.value.map((edge, index) => ({ id: String(index), cells: [fromId(edge), <Identity of={edge.source_principal} />, toId(edge), <Identity of={edge.destination_principal} />, rate(edge.rate), <Lock mtls={edge.mtls} />] }))} />
        )}
      </Card>
      <Card title="Denied">
        {denied.length === 0 ? <Empty>Nothing was denied.</Empty> : (
          <Table label="Denied" head={["From", "To", "Asked for", "Answer", "How often"]}
            rows={denied.map(({ edge, it, count }, index) => ({ id: String(index), cells: [fromId(edge), toId(edge), short(edge.host), <Badge kind="bad">{it.code}{it.grpc ? ` grpc ${it.grpc}` : ""} {it.flags !== "-" ? it.flags : ""}</Badge>, count] }))} />
        )}
      </Card>
      <Card title="Policies">
        {policies.length === 0 ? <Empty>None: every workload with an identity of the mesh may call every other, over mutual TLS.</Empty> : (
          <Table label="Policies" head={["Kind", "Namespace", "Name", "What it says"]} onRow={(id) => (location.hash = `#/config/${id}`)}
            rows={policies.map((it) => ({ id: `${it.key.kind}/${it.key.namespace}/${it.key.name}`, cells: [it.key.kind, it.key.namespace, it.key.name, it.object.spec?.action ?? it.object.spec?.mtls?.mode ?? (it.object.spec?.jwtRules ?? []).map((rule) => rule.issuer).join(", ") ?? ""] }))} />
        )}
      </Card>
    </>
  );
}
