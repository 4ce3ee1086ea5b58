// Faults on purpose: a delay or an answer in a service's place, for some of its requests or for those of one user.
import { useState } from "preact/hooks";
import { live } from "../live.js";
import { objects } from "../api.js";
import { Badge, Card, Empty, Table, useLoaded } from "../parts.jsx";
import { Proposal, change } from "../change.jsx";

const faultOf = (fault) => [
  fault.delay && `delay of ${fault.delay.fixedDelay} for ${fault.delay.percentage?.value ?? fault.delay.percent ?? 100} %`,
  fault.abort && `answer ${fault.abort.httpStatus ?? fault.abort.grpcStatus} for ${fault.abort.percentage?.value ?? fault.abort.percent ?? 100} %`,
].filter(Boolean).join(", ");

export function Faults() {
  const loaded = useLoaded(async () => ({ routes: await objects("VirtualService"), services: await objects("Service") }), [live.value.version]);
  const [form, setForm] = useState({ service: "", kind: "delay", seconds: 2, status: 503, percent: 100, header: "end-user", value: "" });
  const set = (name) => (event) => setForm({ ...form, [name]: event.currentTarget.value });
  if (!loaded.value) return <Card><Empty>{loaded.error?.message ?? "…"}</Empty></Card>;
  const { routes, services } = loaded.value;
  const injected = routes.flatMap((route) => (route.object.spec.http ?? []).filter((rule) => rule.fault).map((rule) => ({ route, rule })));
  const names = services.map((it) => it.key.name).sort();
  const name = form.service || (names.includes("ratings") ? "ratings" : names[0]);
  const existing = routes.find((route) => !route.object.spec.gateways && (route.object.spec.hosts ?? []).some((host) => host.split(".")[0] === name));
  const percentage = { value: Number(form.percent) };
  const fault = form.kind === "delay" ? { delay: { fixedDelay: `${form.seconds}s`, percentage } } : { abort: { httpStatus: Number(form.status), percentage } };
  const http = existing?.object.spec.http ?? [{ route: [{ destination: { host: name } }] }];
  const withFault = { ...http.at(-1), fault, ...(form.value ? { match: [{ headers: { [form.header.toLowerCase()]: { exact: form.value } } }] } : {}) };
  const object = {
    apiVersion: existing?.object.apiVersion ?? "networking.istio.io/v1",
    kind: "VirtualService",
    metadata: { name: existing?.key.name ?? name, namespace: existing?.key.namespace ?? "default" },
    spec: { ...(existing?.object.spec ?? { hosts: [name] }), http: form.value ? [withFault, ...http] : [...http.slice(0, -1), withFault] },
  };
  const without = (route) => ({
    apiVersion: route.object.apiVersion, kind: "VirtualService", metadata: { name: route.key.name, namespace: route.key.namespace },
    spec: { ...route.object.spec, http: route.object.spec.http.map(({ fault: _, ...rest }) => rest) },
  });
  return (
    <>
      <Card title="Faults in force">
        {injected.length === 0 ? <Empty>None.</Empty> : (
          <Table label="Faults in force" head={["VirtualService", "Hosts", "Fault", "For", ""]}
            rows={injected.map(({ route, rule }, index) => ({ id: String(index), cells: [
              `${route.key.namespace}/${route.key.name}`, (route.object.spec.hosts ?? []).join(", "), <Badge kind="poor">{faultOf(rule.fault)}</Badge>, rule.match ? JSON.stringify(rule.match) : "all requests",
              <button type="button" onClick={() => change(`faults of ${route.key.name} removed`, [without(route)])}>Remove</button>,
            ] }))} />
        )}
      </Card>
      <Card title="A new fault">
        <div class="row">
          <label>Service <select aria-label="Service" value={name} onChange={set("service")}>{names.map((it) => <option key={it}>{it}</option>)}</select></label>
          <label>Fault <select aria-label="Fault" value={form.kind} onChange={set("kind")}><option value="delay">delay</option><option value="abort">answer</option></select></label>
          {form.kind === "delay" ? <label>Seconds <input type="number" min="0.1" step="0.1" value={form.seconds} onInput={set("seconds")} /></label> : <label>Status <input type="number" min="200" max="599" value={form.status} onInput={set("status")} /></label>}
          <label>Percent <input type="number" min="0" max="100" value={form.percent} onInput={set("percent")} /></label>
        </div>
        <div class="row">
          <label>Only where header <input value={form.header} onInput={set("header")} /></label>
          <label>is <input value={form.value} placeholder="anything" onInput={set("value")} /></label>
        </div>
        <Proposal title={`fault of ${name}`} objects={[object]} />
      </Card>
    </>
  );
}
