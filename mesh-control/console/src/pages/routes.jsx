// Where requests of a service go: a slider for each version, and a rule of who goes where. What is moved here becomes a
// VirtualService, shown before it is applied.
import { useState } from "preact/hooks";
import { live, services, wanted } from "../live.js";
import { objects } from "../api.js";
import { short } from "../format.js";
import { Card, Empty, Table, useLoaded, useSome } from "../parts.jsx";
import { Proposal } from "../change.jsx";

const hostOf = (name, namespace) => (name.includes(".") ? name : `${name}.${namespace}.svc.cluster.local`);

/** Moves one share, and the others in proportion, so that they sum to 100. */
export function moved(shares, name, value) {
  const rest = Object.entries(shares).filter(([other]) => other !== name);
  const before = rest.reduce((sum, [, share]) => sum + share, 0);
  const left = 100 - value;
  const next = { ...shares, [name]: value };
  let given = 0;
  rest.forEach(([other, share], index) => {
    const part = index === rest.length - 1 ? left - given : Math.round(before ? (left * share) / before : left / rest.length);
    next[other] = Math.max(0, part);
    given += next[other];
  });
  return next;
}

const subsetsOf = (rule) => (rule?.object.spec?.subsets ?? []).map((subset) => subset.name);

function Service({ host, namespace, rule, existing }) {
  const spec = existing?.object.spec ?? {};
  const http = spec.http ?? [];
  const last = http.at(-1);
  const known = Object.fromEntries((last?.route ?? []).map((it) => [it.destination?.subset ?? "all", it.weight ?? (last.route.length === 1 ? 100 : 0)]));
  const names = subsetsOf(rule);
  const even = Object.fromEntries(names.map((name, index) => [name, Math.floor(100 / names.length) + (index < 100 % names.length ? 1 : 0)]));
  const begin = names.some((name) => known[name]) ? Object.fromEntries(names.map((name) => [name, known[name] ?? 0])) : even;
  const [shares, setShares] = useState(begin);
  const [rules, setRules] = useState([]);
  const [draft, setDraft] = useState({ by: "header", name: "end-user", value: "", to: names[0] });
  const short = host.split(".")[0];
  const destination = (subset) => ({ host: short, subset });
  const header = (by, name) => (by === "cookie" ? "cookie" : by === "agent" ? "user-agent" : name.toLowerCase());
  const match = ({ by, name, value }) => ({
    headers: { [header(by, name)]: by === "header" ? { exact: value } : { regex: by === "cookie" ? `^(.*?;)?(${name}=${value})(;.*)?$` : `.*${value}.*` } },
  });
  const split = names.filter((name) => shares[name] > 0);
  const object = {
    apiVersion: existing?.object.apiVersion ?? "networking.istio.io/v1",
    kind: "VirtualService",
    metadata: { name: existing?.key.name ?? short, namespace },
    spec: {
      ...spec,
      hosts: spec.hosts ?? [short],
      http: [
        ...rules.map((it) => ({ match: [match(it)], route: [{ destination: destination(it.to) }] })),
        ...http.slice(0, -1),
        { ...(last ?? {}), route: split.map((name) => ({ destination: destination(name), weight: shares[name] })) },
      ],
    },
  };
  return (
    <Card title={`Where requests of ${short} go`}>
      <div class="sliders">
        {names.map((name) => (
          <label key={name}>
            <span>{name}</span>
            <input type="range" min="0" max="100" value={shares[name]} aria-label={`Share of ${name}`} data-subset={name}
              onInput={(event) => setShares(moved(shares, name, Number(event.currentTarget.value)))} />
            <output>{shares[name]} %</output>
          </label>
        ))}
      </div>
      <fieldset>
        <legend>Who goes where, before that</legend>
        <div class="row">
          <select aria-label="By" value={draft.by} onChange={(event) => setDraft({ ...draft, by: event.currentTarget.value })}>
            <option value="header">header</option><option value="cookie">cookie</option><option value="agent">user agent</option>
          </select>
          {draft.by !== "agent" && <input aria-label="Name" value={draft.name} onInput={(event) => setDraft({ ...draft, name: event.currentTarget.value })} />}
          <input aria-label="Value" value={draft.value} placeholder="jason" onInput={(event) => setDraft({ ...draft, value: event.currentTarget.value })} />
          <span>to</span>
          <select aria-label="Version" value={draft.to} onChange={(event) => setDraft({ ...draft, to: event.currentTarget.value })}>{names.map((name) => <option key={name}>{name}</option>)}</select>
          <button type="button" disabled={!draft.value} onClick={() => { setRules([...rules, draft]); setDraft({ ...draft, value: "" }); }}>Add</button>
        </div>
        <ul>{rules.map((it, index) => <li key={index}>{it.by} {it.by === "agent" ? "" : it.name} {it.by === "header" ? "is" : "has"} “{it.value}” → {it.to} <button type="button" onClick={() => setRules(rules.filter((_, other) => other !== index))}>Remove</button></li>)}</ul>
      </fieldset>
      <Proposal title={`routes of ${short}`} objects={[object]} onDone={() => setRules([])} />
    </Card>
  );
}

/** The services whose versions are known, to choose from. */
function Tabs({ of, chosen }) {
  const [drawn, rest] = useSome(of, 40);
  return (
    <>
      <div class="row tabs" role="group" aria-label="Service">
        {drawn.map((it) => <a key={it.host} href={`#/routes/${encodeURIComponent(it.host)}`} aria-current={it === chosen ? "true" : undefined}>{short(it.host)}</a>)}
      </div>
      {rest}
    </>
  );
}

export function Routes({ path }) {
  const { version } = live.value;
  const loaded = useLoaded(async () => ({ rules: await objects("DestinationRule"), routes: await objects("VirtualService"), services: await objects("Service") }), [version]);
  if (loaded.error) return <Card><Empty>{loaded.error.message}</Empty></Card>;
  if (!loaded.value) return <Card><Empty>…</Empty></Card>;
  const { rules, routes } = loaded.value;
  const split = rules.filter((rule) => subsetsOf(rule).length > 0).map((rule) => ({ rule, host: hostOf(rule.object.spec.host, rule.key.namespace), namespace: rule.key.namespace }));
  const routeOf = (host) => routes.find((route) => !route.object.spec.gateways && (route.object.spec.hosts ?? []).some((it) => hostOf(it, route.key.namespace) === host));
  const chosen = split.find((it) => it.host === path[0]) ?? split.find((it) => it.host.startsWith("reviews.")) ?? split[0];
  return (
    <>
      <Card title="VirtualServices">
        {routes.length === 0 ? <Empty>None: every request goes to any endpoint of its service.</Empty> : (
          <Table label="VirtualServices" head={["Name", "Namespace", "Hosts", "Gateways", "Rules"]}
            rows={routes.filter((it) => wanted(it.key.name, ...(it.object.spec.hosts ?? []))).map((it) => ({ id: `${it.key.namespace}/${it.key.name}`, cells: () => [it.key.name, it.key.namespace, (it.object.spec.hosts ?? []).join(", "), (it.object.spec.gateways ?? []).join(", ") || "mesh", (it.object.spec.http ?? []).length] }))} />
        )}
      </Card>
      {split.length === 0 ? <Card><Empty>No DestinationRule names the versions of a service (its <code>subsets</code>). Apply one to move traffic between them.</Empty></Card> : (
        <>
          <Tabs of={split.filter((it) => wanted(it.host))} chosen={chosen} />
          <Service key={`${chosen.host} ${JSON.stringify(routeOf(chosen.host)?.object)}`} {...chosen} existing={routeOf(chosen.host)} />
          <Now host={chosen.host} />
        </>
      )}
    </>
  );
}

/** Where requests really go. */
function Now({ host }) {
  const edges = services.value.find((it) => it.host === host)?.edges ?? [];
  const all = edges.reduce((sum, edge) => sum + edge.rate, 0);
  const byVersion = new Map();
  for (const edge of edges) byVersion.set(edge.to.version, (byVersion.get(edge.to.version) ?? 0) + edge.rate);
  return (
    <Card title="Where they go now">
      {all === 0 ? <Empty>No requests in the last ten seconds.</Empty> : [...byVersion].sort().map(([version, rate]) => (
        <div class="bar" key={version} data-version={version} data-share={rate / all}><span>{version}</span><meter min="0" max="1" value={rate / all} /><span>{Math.round((rate / all) * 100)} %</span></div>
      ))}
    </Card>
  );
}
