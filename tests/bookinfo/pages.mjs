// Every page of the console in a real browser, on a running Bookinfo: `node pages.mjs CONSOLE GATEWAY`. Ends with 1 at the first thing
// that is not as it should be. With SCREENSHOTS=DIR a picture of each page is kept there.
import assert from "node:assert/strict";
import { chromium } from "../../mesh-control/console/node_modules/playwright-core/index.mjs";

const [console_, gateway] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: await which(process.env.CHROMIUM ?? "chromium"), args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1360, height: 900 }, colorScheme: "light" });
page.setDefaultTimeout(20_000);
const wrong = [];
page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
page.on("pageerror", (error) => wrong.push(error.message));
page.on("request", (request) => request.url().startsWith(console_) || request.url().startsWith("data:") || wrong.push(`a request to ${request.url()}`));

// The pages as just built, instead of those within the program: `DIST=mesh-control/console/dist`.
if (process.env.DIST) for (const name of ["app.js", "app.css"]) await page.route(`**/${name}`, (route) => route.fulfill({ path: `${process.env.DIST}/${name}` }));

async function which(program) {
  const { execFileSync } = await import("node:child_process");
  return execFileSync("sh", ["-c", `command -v ${program}`]).toString().trim();
}

// Visitors, until the end.
let visiting = true;
const reviewers = [];
const visit = async () => {
  while (visiting) {
    const body = await fetch(`${gateway}/productpage`).then((answer) => answer.text(), () => "");
    const reviewer = body.match(/reviews-v\d/)?.[0];
    if (reviewer) reviewers.push({ at: Date.now(), reviewer });
    await new Promise((done) => setTimeout(done, 40));
  }
};
const visitors = [visit(), visit()];

const open = async (name) => {
  await page.goto(`${console_}/console/#/${name}`);
  await page.locator("[role=status]", { hasText: "live" }).first().waitFor();
};
const keep = async (name) => process.env.SCREENSHOTS && page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}.png` });
const row = (label, text) => page.locator(`table[aria-label="${label}"] tbody tr`, { hasText: text });

async function overview() {
  await open("overview");
  for (const service of ["details", "productpage", "ratings", "reviews"]) await row("Services", service).waitFor();
  await page.locator(".u-wrap canvas").first().waitFor();
  await keep("overview");
}

async function graph() {
  await open("graph");
  for (const [from, to] of [
    ["istio-ingressgateway.istio-system", "productpage-v1.default"],
    ["productpage-v1.default", "details-v1.default"],
    ["productpage-v1.default", "reviews-v1.default"],
    ["productpage-v1.default", "reviews-v2.default"],
    ["productpage-v1.default", "reviews-v3.default"],
    ["reviews-v2.default", "ratings-v1.default"],
    ["reviews-v3.default", "ratings-v1.default"],
  ]) {
    const edge = page.locator(`.edge[data-from="${from}"][data-to="${to}"][data-mtls="true"]`);
    await edge.waitFor();
    await page.waitForFunction((it) => Number(it.getAttribute("data-rate")) > 0, await edge.elementHandle());
  }
  // With the keyboard alone: reach an edge and open it.
  const edge = page.locator('.edge[data-to="ratings-v1.default"]').first();
  await edge.focus();
  await page.keyboard.press("Enter");
  await row("What was asked for", "ratings").first().waitFor();
  await keep("graph");
  await page.getByRole("searchbox").fill("details");
  await page.waitForFunction(() => document.querySelectorAll(".edge").length === 1);
  await page.getByRole("searchbox").fill("");
}

async function topology() {
  await open("topology");
  const processes = page.locator(".process");
  await page.waitForFunction(() => document.querySelectorAll(".process").length === 7);
  assert.equal(await processes.filter({ hasText: /process \d+/ }).count(), 7, "every process is known by its number");
  await page.locator(".process", { has: page.locator("strong", { hasText: "productpage-v1" }) }).click();
  await row("Endpoints of productpage-v1.default", "reviews-v2").first().waitFor();
  await keep("topology");
}

async function services() {
  await open("services");
  await row("Services", /^reviews/).click();
  await row("Versions and callers", "reviews-v3").waitFor();
  await page.waitForFunction(() => document.querySelectorAll('table[aria-label="Endpoints"] tbody tr').length === 3);
  await row("Certificates", "sa/bookinfo-reviews").first().waitFor();
  await keep("services");
}

/** Moves the slider, and counts who really answers. */
async function routes() {
  await open("routes/reviews.default.svc.cluster.local");
  const slider = page.locator('input[data-subset="v3"]');
  await slider.fill("100");
  await page.locator(".yaml", { hasText: "weight: 100" }).waitFor();
  await keep("routes");
  await page.getByRole("button", { name: "Apply" }).click();
  const applied = Date.now();
  await new Promise((done) => setTimeout(done, 4000));
  const after = reviewers.filter((it) => it.at > applied + 2000);
  assert.ok(after.length > 10, `${after.length} visits`);
  assert.ok(after.every((it) => it.reviewer === "reviews-v3"), `two seconds later all go to v3: ${JSON.stringify(after)}`);
  await page.locator('.bar[data-version="v3"]').waitFor();
  await page.getByRole("button", { name: /^Undo: routes of reviews/ }).click();
  const undone = Date.now();
  await new Promise((done) => setTimeout(done, 4000));
  const back = new Set(reviewers.filter((it) => it.at > undone + 2000).map((it) => it.reviewer));
  assert.equal(back.size, 3, `all three answer again: ${[...back]}`);

  // Who goes where: one user to v2, everybody else as before.
  await page.getByLabel("Name", { exact: true }).fill("end-user");
  await page.getByLabel("Value", { exact: true }).fill("jason");
  await page.getByLabel("Version", { exact: true }).selectOption("v2");
  await page.getByRole("button", { name: "Add" }).click();
  await page.locator(".yaml", { hasText: "exact: jason" }).waitFor();
  await page.getByRole("button", { name: "Apply" }).click();
  await page.getByRole("button", { name: /^Undo: routes of reviews/ }).waitFor();
  await new Promise((done) => setTimeout(done, 2000));
  const login = await fetch(`${gateway}/login`, { method: "POST", body: new URLSearchParams({ username: "jason" }), redirect: "manual" });
  const cookie = login.headers.getSetCookie().map((it) => it.split(";")[0]).join("; ");
  const reviewers_of = async (headers) => {
    const seen = new Set();
    for (let n = 0; n < 24; n++) seen.add((await (await fetch(`${gateway}/api/v1/products/0/reviews`, { headers })).text()).match(/reviews-v\d/)?.[0]);
    return [...seen].sort();
  };
  assert.deepEqual(await reviewers_of({ cookie }), ["reviews-v2"], "jason goes to v2");
  assert.ok((await reviewers_of({})).length > 1, "all others go where they went");
  await page.getByRole("button", { name: /^Undo: routes of reviews/ }).click();
  await page.getByRole("button", { name: "Undo", exact: true }).waitFor();
}

async function config() {
  await open("config/new");
  const editor = page.getByRole("textbox", { name: "YAML" });
  await editor.fill("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {host: reviews, subset: v33}\n");
  await page.locator(".findings li", { hasText: "v33" }).first().waitFor();
  await page.locator(".findings .where", { hasText: "console.yaml:8" }).first().waitFor();
  await keep("config");
  await row("Objects", "DestinationRule").first().click();
  await page.getByRole("heading", { name: /^DestinationRule/ }).waitFor();
  await row("Where it is used", "productpage-v1").or(row("Where it is used", "reviews-v")).or(row("Where it is used", "ingressgateway")).first().waitFor();
  await page.locator("[data-applied]").waitFor();
  assert.ok(Number(await page.locator("[data-applied]").getAttribute("data-applied")) > 50, "what is applied is counted");
}

async function traces() {
  await open("traces");
  const whole = row("Traces", /ingressgateway.*ratings/).first();
  await whole.waitFor();
  await whole.click();
  const spans = page.locator(".waterfall li");
  await spans.first().waitFor();
  for (const service of ["istio-ingressgateway", "productpage", "reviews", "ratings"])
    await page.locator(`.waterfall li[data-service="${service}"]`).first().waitFor();
  await spans.first().getByRole("button").click();
  await page.locator(".attributes").first().waitFor();
  await keep("traces");
}

async function security() {
  await open("security");
  await row("Who calls whom", "default/bookinfo-productpage").first().waitFor();
  assert.equal(await row("Who calls whom", "plaintext").count(), 0);
  // Denied, and why: by the rule that the control plane says decides.
  const change = (path, body) => fetch(`${console_}${path}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: default}\nspec:\n  selector: {matchLabels: {app: details}}\n  action: DENY\n  rules: [{to: [{operation: {methods: [GET]}}]}]\n";
  assert.ok((await change("/apply", { files: [{ name: "nobody.yaml", text }] })).ok);
  await row("Denied", /productpage.*details.*403/).first().waitFor();
  await row("Denied", /productpage.*details.*403/).first().click();
  await page.locator(".verdict", { hasText: "default/nobody rules[0]" }).waitFor();
  await row("What was asked of it", "DENY").waitFor();
  await keep("security");
  assert.ok((await change("/delete", { keys: [{ kind: "AuthorizationPolicy", namespace: "default", name: "nobody" }] })).ok);
}

async function faults() {
  await open("faults");
  await page.getByLabel("Fault", { exact: true }).selectOption("abort");
  await page.getByLabel("Service", { exact: true }).selectOption("ratings");
  await page.locator(".yaml", { hasText: "httpStatus: 503" }).waitFor();
  await page.getByRole("button", { name: "Apply" }).click();
  await row("Faults in force", "answer 503").waitFor();
  await keep("faults");
  await open("graph");
  await page.locator(".edge.bad").first().waitFor();
  await open("faults");
  await page.getByRole("button", { name: /^Undo: fault of ratings/ }).click();
  await page.locator(".card", { hasText: "Faults in force" }).getByText("None.").waitFor();
}

for (const step of [overview, graph, topology, services, routes, config, traces, security, faults]) {
  await step().catch(async (error) => {
    await keep(`failed-${step.name}`);
    console.error(`${step.name}: ${error.stack}\n${wrong.join("\n")}`);
    process.exit(1);
  });
  assert.deepEqual(wrong, [], step.name);
  console.log(`${step.name}: as it should be`);
}
// Narrow, dark, and without motion.
await page.emulateMedia({ colorScheme: "dark", reducedMotion: "reduce" });
await page.setViewportSize({ width: 390, height: 800 });
await open("graph");
await page.locator(".edge").first().waitFor();
assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 392), "nothing is wider than the page");
await keep("graph-dark");
visiting = false;
await Promise.all(visitors);
await browser.close();
