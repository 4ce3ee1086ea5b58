// A change in the making: the YAML it will apply, what the analyzers say of it, apply, and undo.
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { FILE, analyze, apply, get, remove, yaml } from "./api.js";
import { Findings } from "./parts.jsx";

/** What was applied from here last, with what there was before. */
export const history = signal([]);

const keyOf = (object) => ({ kind: object.kind, namespace: object.metadata?.namespace ?? "default", name: object.metadata?.name });

async function before(key) {
  const { kind, namespace, name } = key;
  const found = await get(`/objects?${new URLSearchParams({ kind, namespace })}`);
  return found.items.find((it) => it.key.name === name)?.object ?? null;
}

/** Applies objects, remembering what they replace. */
export async function change(title, wanted) {
  const replaced = await Promise.all(wanted.map(async (object) => ({ key: keyOf(object), object: await before(keyOf(object)) })));
  const text = (await Promise.all(wanted.map(yaml))).join("---\n");
  const applied = await apply(text);
  history.value = [...history.value, { title, replaced, at: Date.now() }];
  return applied;
}

/** Takes objects away, remembering them. */
export async function drop(title, keys) {
  const replaced = await Promise.all(keys.map(async (key) => ({ key, object: await before(key) })));
  for (const key of keys) await remove(key);
  history.value = [...history.value, { title, replaced, at: Date.now() }];
}

/** Puts back what the last change replaced. */
export async function undo() {
  const last = history.value.at(-1);
  if (!last) return;
  for (const { key, object } of last.replaced) {
    if (object) await apply(await yaml(object));
    else await remove(key);
  }
  history.value = history.value.slice(0, -1);
}

export function Undo() {
  const last = history.value.at(-1);
  const [error, setError] = useState("");
  return (
    <div class="undo" aria-live="polite">
      <button type="button" disabled={!last} onClick={() => undo().then(() => setError(""), (it) => setError(it.message))}>
        Undo{last ? `: ${last.title}` : ""}
      </button>
      {error && <span class="bad">{error}</span>}
    </div>
  );
}

/** Shows the objects as YAML and applies them. */
export function Proposal({ title, objects, onDone }) {
  const [text, setText] = useState("");
  const [findings, setFindings] = useState([]);
  const [told, setTold] = useState(null);
  const wanted = JSON.stringify(objects);
  useEffect(() => {
    let gone = false;
    const show = async () => {
      const made = (await Promise.all(objects.map(yaml))).join("---\n");
      if (gone) return;
      setText(made);
      const found = await analyze(made).catch(() => ({ diagnostics: [] }));
      if (!gone) setFindings(found.diagnostics.filter((it) => it.level !== "info" && it.file === FILE));
    };
    show().catch((error) => gone || setTold({ bad: true, text: error.message }));
    return () => { gone = true; };
  }, [wanted]);
  const send = () => change(title, objects).then(
    () => { setTold({ text: "Applied." }); onDone?.(); },
    (error) => { setTold({ bad: true, text: error.message }); setFindings(error.diagnostics ?? []); },
  );
  return (
    <div class="proposal">
      <pre class="yaml" aria-label="The YAML that will be applied" tabIndex={0}>{text}</pre>
      <Findings of={findings} />
      <div class="row">
        <button type="button" class="primary" onClick={send}>Apply</button>
        <span role="status" class={told?.bad ? "bad" : "good"}>{told?.text}</span>
      </div>
    </div>
  );
}
