// Talking to the control plane: the same HTTP API that meshctl uses, with the token that only this page knows.
const token = document.querySelector("meta[name=mesh-token]")?.content ?? "";

export class Refused extends Error {
  constructor(problem, status) {
    super(problem.error ?? `the control plane answered ${status}`);
    this.diagnostics = problem.diagnostics ?? [];
  }
}

async function answer(response) {
  if (response.ok) return (response.headers.get("content-type") ?? "").includes("json") ? response.json() : response.text();
  throw new Refused(await response.json().catch(() => ({})), response.status);
}

export const get = async (path) => answer(await fetch(path));

export const post = async (path, body) =>
  answer(await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-mesh-token": token },
    body: JSON.stringify(body),
  }));

/** What a text of these pages is called in findings. */
export const FILE = "console.yaml";

export const apply = (text, dryRun = false) => post("/apply", { files: [{ name: FILE, text }], dry_run: dryRun });
export const analyze = (text) => post("/analyze", { files: [{ name: FILE, text }] });
export const remove = (key) => post("/delete", { keys: [key] });
export const yaml = (value) => post("/console/yaml", value);
export const objects = async (kind) => (await get(`/objects${kind ? `?kind=${kind}` : ""}`)).items;
