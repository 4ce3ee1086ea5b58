// The console of a mesh of very many services in a real browser: `node large.mjs CONSOLE SERVICES`. Every page draws a bounded part of it, is not busy with
// one thing for long, and finds what is looked for.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chromium } from "../../mesh-control/console/node_modules/playwright-core/index.mjs";

const [console_, services] = [process.argv[2], Number(process.argv[3])];
/** Elements of a page, at most. A thousand rows of a table alone are ten thousand. */
const ELEMENTS = 3000;
/** Milliseconds that the page may not answer to its user, at most: this is a build without optimisation on a busy machine. */
const BUSY = 1500;

const program = execFileSync("sh", ["-c", `command -v ${process.env.CHROMIUM ?? "chromium"}`]).toString().trim();
const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1360, height: 900 } });
page.setDefaultTimeout(30_000);
const wrong = [];
page.on("console", (message) => message.type() === "error" && wrong.push(`${message.text()} ${message.location().url}`));
page.on("pageerror", (error) => wrong.push(error.message));
if (process.env.DIST) for (const name of ["app.js", "app.css"]) await page.route(`**/${name}`, (route) => route.fulfill({ path: `${process.env.DIST}/${name}` }));
await page.addInitScript(() => {
  window.longest = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((it) => (window.longest = Math.max(window.longest, it.duration)))).observe({ entryTypes: ["longtask"] });
});
await page.goto(`${console_}/console/`);
await page.locator("[role=status]", { hasText: "live" }).first().waitFor();
await page.waitForFunction((least) => Number(document.querySelector("main").dataset.edges) >= least, services);

const search = page.getByRole("searchbox");
/** What is on a page once it is drawn, what is left when one service is looked for, and what that costs. */
const steps = {
  overview: { drawn: 'table[aria-label="Services"] tbody tr', rest: "more. Narrow" },
  graph: { drawn: ".node", rest: "Drawn are the" },
  topology: { drawn: ".process", rest: "more. Narrow" },
  services: { drawn: 'table[aria-label="Services"] tbody tr', rest: "more. Narrow" },
  routes: { drawn: ".tabs a", rest: "more. Narrow" },
  config: { drawn: 'table[aria-label="Objects"] tbody tr', rest: "more. Narrow" },
  security: { drawn: 'table[aria-label="Who calls whom"] tbody tr', rest: "more. Narrow" },
};
for (const [name, { drawn, rest }] of Object.entries(steps)) {
  await search.fill("");
  await page.evaluate((name) => { location.hash = `#/${name}`; }, name);
  await page.waitForFunction(([name, drawn]) => document.querySelector("main").dataset.page === name && document.querySelectorAll(drawn).length > 30, [name, drawn]);
  await page.getByText(rest).first().waitFor();
  // As it is looked at for a while: every second brings new figures.
  await page.evaluate(() => (window.longest = 0));
  await page.waitForTimeout(2500);
  const elements = await page.evaluate(() => document.querySelectorAll("*").length);
  const begun = Date.now();
  await search.fill("svc-0777");
  await page.waitForFunction((drawn) => {
    const left = [...document.querySelectorAll(drawn)];
    return left.length > 0 && left.length < 10 && left.some((it) => it.textContent.includes("svc-0777"));
  }, drawn);
  const [found, longest] = [Date.now() - begun, Math.round(await page.evaluate(() => window.longest))];
  console.log(`${name}: ${elements} elements, busy for ${longest} ms at most, found in ${found} ms`);
  assert.ok(elements <= ELEMENTS, `${name} draws ${elements} elements`);
  assert.ok(longest <= BUSY, `${name} is busy for ${longest} ms`);
  assert.ok(found <= 2 * BUSY, `${name} finds in ${found} ms`);
}
// More is drawn when it is asked for.
await search.fill("");
await page.evaluate(() => { location.hash = "#/services"; });
await page.getByRole("button", { name: /^show 100 more/ }).first().click();
await page.waitForFunction(() => document.querySelectorAll('table[aria-label="Services"] tbody tr').length === 200);
assert.deepEqual(wrong, []);
await browser.close();
