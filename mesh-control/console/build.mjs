// Builds the pages into `dist/`, which is committed so that nobody but who changes them needs Node. With `--check`, says whether
// what is committed is what the sources make, and how large it is.
import { build } from "esbuild";
import { readFile, writeFile, mkdir } from "node:fs/promises";
import { gzipSync } from "node:zlib";

const MOST = 120 * 1024;
const check = process.argv.includes("--check");
const made = await build({
  entryPoints: { app: "src/app.jsx" },
  bundle: true,
  minify: true,
  write: false,
  outdir: "dist",
  format: "iife",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  metafile: true,
  charset: "utf8",
});
const files = Object.fromEntries(made.outputFiles.map((file) => [file.path.split("/").pop(), file.text]));
files["index.html"] = await readFile("src/index.html", "utf8");
files["LICENSES.txt"] = await licences(Object.keys(made.metafile.inputs));

/** The licences of the packages that are in the pages, whole. */
async function licences(inputs) {
  const names = new Set(inputs.map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//)?.[1]).filter(Boolean));
  // What they depend on is within them, where they come in one piece.
  for (const name of names) {
    const { dependencies = {} } = JSON.parse(await readFile(`node_modules/${name}/package.json`, "utf8"));
    Object.keys(dependencies).forEach((it) => names.add(it));
  }
  const texts = await Promise.all([...names].sort().map(async (name) => {
    const { version, license } = JSON.parse(await readFile(`node_modules/${name}/package.json`, "utf8"));
    const text = await readFile(`node_modules/${name}/LICENSE`, "utf8");
    return `${name} ${version} (${license})\n\n${text.replaceAll("\r", "").trim()}\n`;
  }));
  return `The console's pages contain these packages.\n\n${texts.join(`\n${"-".repeat(80)}\n\n`)}`;
}

let failed = false;
const size = Object.values(files).reduce((sum, text) => sum + gzipSync(text, { level: 9 }).length, 0);
console.log(`${(size / 1024).toFixed(1)} KiB gzipped of ${MOST / 1024}`);
if (size > MOST) {
  console.error("the pages are too large");
  failed = true;
}
await mkdir("dist", { recursive: true });
for (const [name, text] of Object.entries(files)) {
  if (!check) await writeFile(`dist/${name}`, text);
  else if ((await readFile(`dist/${name}`, "utf8").catch(() => "")) !== text) {
    console.error(`dist/${name} is not what the sources make; run: npm ci && npm run build`);
    failed = true;
  }
}
process.exit(failed ? 1 : 0);
