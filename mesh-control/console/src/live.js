// The mesh as the control plane tells it once a second, and what follows from it.
import { computed, signal } from "@preact/signals";

const none = { at: 0, total: {}, edges: [], workloads: [], proxies: [], left_out: 0, version: 0 };

/** The last telling. */
export const live = signal(none);
/** Is the control plane there? */
export const connected = signal(false);
/** What is shown in every page: a part of a name. */
export const filter = signal("");

let stream;
export function listen() {
  stream?.close();
  stream = new EventSource("/console/live");
  stream.onopen = () => (connected.value = true);
  stream.onerror = () => (connected.value = false);
  stream.onmessage = (event) => {
    const told = JSON.parse(event.data);
    if (told.at) live.value = told;
  };
}

export const placeId = (place, host) => (place.workload === "unknown" ? host : `${place.workload}.${place.namespace}`);
export const fromId = (edge) => placeId(edge.from, "outside");
export const toId = (edge) => placeId(edge.to, edge.host);

const matches = (edge) => wanted(fromId(edge), toId(edge), edge.host);

/** Is this part of what is looked for? Empty is everything. */
export const wanted = (...names) => {
  const part = filter.value.trim().toLowerCase();
  return !part || names.some((name) => name?.toLowerCase().includes(part));
};

/** Edges that the filter lets through. */
export const edges = computed(() => live.value.edges.filter(matches));

/** What is called: by host, with the sum over its callers. */
export const services = computed(() => {
  const all = new Map();
  for (const edge of edges.value) {
    if (edge.host === "unknown") continue;
    const sum = all.get(edge.host) ?? { host: edge.host, rate: 0, failed: 0, p95: 0, edges: [] };
    sum.rate += edge.rate;
    sum.failed += edge.rate * edge.errors;
    sum.p95 = Math.max(sum.p95, edge.p95 ?? 0);
    sum.edges.push(edge);
    all.set(edge.host, sum);
  }
  return [...all.values()].sort((a, b) => a.host.localeCompare(b.host));
});
