// Small things that several pages are made of.
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { get } from "./api.js";
import { millis, percent, rate } from "./format.js";

export const Card = ({ title, children, actions, ...rest }) => (
  <section class="card" {...rest}>
    {title && <header><h2>{title}</h2><div class="actions">{actions}</div></header>}
    {children}
  </section>
);

export const Empty = ({ children }) => <p class="empty">{children}</p>;

export const Badge = ({ kind = "idle", children }) => <span class={`badge ${kind}`}>{children}</span>;

/** A padlock, drawn: not every font has one. Eleven units high, at a point. */
export const Padlock = ({ x = 0, y = 0 }) => (
  <path class="padlock" transform={`translate(${x},${y})`} d="M1 5h8v6H1zM2.8 5V3.2a2.2 2.2 0 0 1 4.4 0V5" />
);

export const Lock = ({ mtls }) =>
  mtls == null ? <span title="not told">–</span> : mtls ? (
    <span class="good" title="mutual TLS"><svg width="10" height="12" aria-hidden="true"><Padlock /></svg> mTLS</span>
  ) : <span class="bad" title="plaintext">plaintext</span>;

/** What is drawn at first of a long list: more is slow to draw, and nobody reads it. */
const DRAWN = 100;

/** What is drawn of a list, and how to get at the rest. */
export function useSome(all, most = DRAWN) {
  const [shown, setShown] = useState(most);
  const left = all.length - shown;
  const rest = left > 0 && (
    <p class="rest" role="status">{left} more. Narrow them down with “Find” above, or <button type="button" onClick={() => setShown(shown + most)}>show {Math.min(left, most)} more</button></p>
  );
  return [left > 0 ? all.slice(0, shown) : all, rest];
}

/** Rows whose cells are a function are made only when they are drawn. */
export function Table({ label, head, rows, onRow }) {
  const [drawn, rest] = useSome(rows);
  return (
    <>
      <div class="scroll" role="region" aria-label={label} tabIndex={0}>
        <table aria-label={label} data-rows={rows.length}>
          <thead><tr>{head.map((name) => <th scope="col" key={name}>{name}</th>)}</tr></thead>
          <tbody>
            {drawn.map(({ id, cells }) => (
              <tr key={id} data-id={id} class={onRow ? "link" : ""} tabIndex={onRow ? 0 : undefined}
                onClick={onRow && (() => onRow(id))} onKeyDown={onRow && ((event) => event.key === "Enter" && onRow(id))}>
                {(typeof cells === "function" ? cells() : cells).map((cell, index) => <td key={index}>{cell}</td>)}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {rest}
    </>
  );
}

export const Figures = ({ of }) => (
  <dl class="figures">
    <div><dt>Requests</dt><dd>{rate(of.rate ?? 0)}<small>/s</small></dd></div>
    <div><dt>Failed</dt><dd class={of.errors > 0.05 ? "bad" : ""}>{percent(of.errors ?? 0)}</dd></div>
    <div><dt>p50</dt><dd>{millis(of.p50)}</dd></div>
    <div><dt>p95</dt><dd>{millis(of.p95)}</dd></div>
    <div><dt>p99</dt><dd>{millis(of.p99)}</dd></div>
  </dl>
);

/** A quarter of an hour of rates, failures and latency, drawn anew every few seconds. */
export function Chart({ query = "", title }) {
  const place = useRef(null);
  const [chart, setChart] = useState(null);
  useEffect(() => {
    let gone = false;
    const load = () => get(`/console/chart${query}`).then((told) => gone || setChart(told)).catch(() => {});
    load();
    const timer = setInterval(load, 5000);
    return () => { gone = true; clearInterval(timer); };
  }, [query]);
  useEffect(() => {
    if (!chart || !place.current) return;
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(name).trim();
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const data = [chart.at, chart.figures.map((it) => it.rate), chart.figures.map((it) => it.rate * it.errors), chart.figures.map((it) => it.p95)];
    const plot = new uPlot({
      width: Math.max(260, place.current.clientWidth), height: 200, cursor: { y: false },
      axes: [axis, { ...axis, size: 50 }, { ...axis, side: 1, scale: "ms", size: 55, grid: { show: false }, values: (_, all) => all.map((it) => `${it} ms`) }],
      scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] }, ms: { range: (_, low, high) => [0, Math.max(10, (high ?? 0) * 1.1)] } },
      series: [
        {},
        { label: "requests/s", points: { show: false }, stroke: colour("--accent"), width: 2, fill: colour("--accent-soft") },
        { label: "failed/s", points: { show: false }, stroke: colour("--bad"), width: 2 },
        { label: "p95 ms", points: { show: false }, stroke: colour("--poor"), width: 1.5, dash: [4, 4], scale: "ms", spanGaps: true },
      ],
    }, data, place.current);
    return () => plot.destroy();
  }, [chart]);
  return <div class="chart" ref={place} role="img" aria-label={title ?? "Requests of the last quarter of an hour"} />;
}

/** Findings about a text, as meshctl prints them. */
export const Findings = ({ of }) => of.length === 0 ? null : (
  <ul class="findings" aria-label="Findings">
    {of.map((it, index) => (
      <li key={index} class={it.level}>
        <strong>{it.level}[{it.code}]</strong> {it.message}
        <div class="where">{it.file}:{it.line}:{it.column}{it.label ? ` – ${it.label}` : ""}</div>
        {it.excerpt && <pre>{it.excerpt}{"\n"}{" ".repeat(Math.max(0, it.column - 1))}{"^".repeat(Math.max(1, it.length))}</pre>}
        {it.help && <div class="help">{it.help}</div>}
      </li>
    ))}
  </ul>
);

/** A thing to ask the control plane for, again whenever `on` changes. */
export function useLoaded(load, on) {
  const [state, setState] = useState({ value: null, error: null });
  useEffect(() => {
    let gone = false;
    Promise.resolve(load()).then((value) => gone || setState({ value, error: null }), (error) => gone || setState({ value: null, error }));
    return () => { gone = true; };
  }, on);
  return state;
}
