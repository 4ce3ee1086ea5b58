// The frame around the pages: where one is, what is looked for, and whether the control plane is there.
import { render } from "preact";
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import "uplot/dist/uPlot.min.css";
import "./app.css";
import { connected, edges, filter, listen, live } from "./live.js";
import { clock } from "./format.js";
import { Undo } from "./change.jsx";
import { Overview } from "./pages/overview.jsx";
import { Graph } from "./pages/graph.jsx";
import { Topology } from "./pages/topology.jsx";
import { Services } from "./pages/services.jsx";
import { Routes } from "./pages/routes.jsx";
import { Config } from "./pages/config.jsx";
import { Traces } from "./pages/traces.jsx";
import { Security } from "./pages/security.jsx";
import { Faults } from "./pages/faults.jsx";

const PAGES = [
  ["overview", "Overview", Overview],
  ["graph", "Graph", Graph],
  ["topology", "Topology", Topology],
  ["services", "Services", Services],
  ["routes", "Routes", Routes],
  ["config", "Config", Config],
  ["traces", "Traces", Traces],
  ["security", "Security", Security],
  ["faults", "Faults", Faults],
];

const where = signal(location.hash);
addEventListener("hashchange", () => (where.value = location.hash));

function App() {
  const [name = "", ...rest] = where.value.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const [id, title, Page] = PAGES.find(([page]) => page === name) ?? PAGES[0];
  useEffect(() => { document.title = `${title} · Mesh`; }, [title]);
  return (
    <div class="frame">
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main")?.focus(); }}>To the page</a>
      <nav aria-label="Pages">
        <div class="brand">Mesh</div>
        {PAGES.map(([page, label]) => (
          <a key={page} href={`#/${page}`} aria-current={page === id ? "page" : undefined}>{label}</a>
        ))}
        <a class="legal" href="LICENSES.txt">Licences</a>
      </nav>
      <header class="top">
        <label>Find <input type="search" value={filter.value} placeholder="a service or workload" onInput={(event) => (filter.value = event.currentTarget.value)} /></label>
        <span class="grow" />
        <Undo />
        <span class={connected.value ? "good" : "bad"} role="status">
          {connected.value ? `live · ${live.value.at ? clock(live.value.at) : "…"}` : "the control plane does not answer; what is shown is old"}
        </span>
      </header>
      <main id="main" tabIndex={-1} data-page={id} data-edges={edges.value.length}>
        <h1>{title}</h1>
        <Page key={id} path={rest} />
      </main>
    </div>
  );
}

listen();
render(<App />, document.getElementById("app"));
