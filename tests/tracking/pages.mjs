// MLflow's web pages on the daemon, looked at in Chromium: pages.mjs ATELIER PAGES [FOLDER]
//
// ATELIER is our program, PAGES the folder of MLflow's pages, FOLDER where pictures of what was seen go. Each page
// has to show what was logged within a time; no request of it fails, and nothing is told on its console as an error, but for
// what is listed here.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const DEADLINE = Number(process.env.PAGES_DEADLINE ?? 60_000);
// What the pages ask for that is not served (docs/mlflow.md), and what they say of it.
const NOT_SERVED = [
  /\/favicon.ico$/,
  /\/users\/current$/,
  /\/traces\b/,
  /\/gateway\b/,
  /\/scorers\b/,
  /\/issues\b/,
  /\/label-schemas/,
  /\/review/,
  /\/webhooks/,
  /\/jobs\b/,
  /\/assistant\b/,
  /\/evaluation|\/datasets\/search/,
  /\/telemetry|ui-telemetry/,
  /\/demo\b/,
  /\/server-features/,
];
const SAID = [
  /Failed to load resource/,
  /Warning:/,
  /React/i,
  /deprecated/i,
  /ENDPOINT_NOT_FOUND/,
  /\[@formatjs/,
  /intl/i,
];

const [atelier, pages, shots] = process.argv.slice(2);
const work = mkdtempSync(join(tmpdir(), 'atelier-pages-'));
const started = [];
function start(program, words, options = {}) {
  const child = spawn(program, words, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  started.push(child);
  return child;
}
async function until(what, look) {
  const end = Date.now() + DEADLINE;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited in vain for ${typeof what === 'function' ? await what() : what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// --- the daemon, and what is logged
const data = join(work, 'data');
const daemon = start(atelier, ['serve', '--listen', '127.0.0.1:0', '--data-dir', data], { stdio: 'ignore' });
const file = (name) => existsSync(join(data, name)) && readFileSync(join(data, name), 'utf8').trim();
let token;
async function ask(method, path, body) {
  const headers = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' };
  const sent = body === undefined || typeof body === 'string' ? body : JSON.stringify(body);
  const answer = await fetch(file('endpoint') + path, {
    method,
    headers,
    body: sent,
    signal: AbortSignal.timeout(DEADLINE),
  });
  const said = await answer.text();
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${said}`);
  return said ? JSON.parse(said) : {};
}
const mlflow = (path, body) => ask('POST', `/api/2.0/mlflow/${path}`, body);
async function log() {
  const experiment = (await mlflow('experiments/create', { name: 'seen digits' })).experiment_id;
  const runs = [];
  for (const [name, rate] of [
    ['slow learner', 0.01],
    ['quick learner', 0.5],
  ]) {
    const body = { experiment_id: experiment, run_name: name, start_time: Date.now() };
    const run = (await mlflow('runs/create', body)).run.info.run_id;
    const metrics = [];
    for (let step = 0; step < 60; step += 1) {
      metrics.push({ key: 'loss', value: Math.exp(-rate * step), timestamp: Date.now(), step });
    }
    metrics.push({ key: 'accuracy', value: rate + 0.3125, timestamp: Date.now(), step: 0 });
    await mlflow('runs/log-batch', { run_id: run, metrics, params: [{ key: 'rate', value: `rate-${rate}` }] });
    const home = `/api/2.0/mlflow-artifacts/artifacts/${experiment}/${run}/artifacts`;
    await ask('PUT', `${home}/notes/read-me.txt`, `words of ${name}`);
    await ask(
      'PUT',
      `${home}/model/MLmodel`,
      'flavors: {}\nsignature:\n  inputs: \'[{"type": "double", "name": "width"}]\'\n',
    );
    await mlflow('runs/update', { run_id: run, status: 'FINISHED', end_time: Date.now() });
    runs.push(run);
  }
  await mlflow('registered-models/create', { name: 'seen-model', description: 'of digits' });
  await mlflow('model-versions/create', { name: 'seen-model', source: `runs:/${runs[1]}/model`, run_id: runs[1] });
  return { experiment, runs };
}

// --- Chromium, by its own protocol
const asked = new Map();
const trouble = [],
  wrong = [];
const urls = new Map();
let browser,
  session,
  number = 0;
function send(method, params = {}, of = session) {
  number += 1;
  const id = number;
  browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId: of })}\0`);
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`Chromium does not answer ${method}`)), DEADLINE);
    asked.set(id, { resolve, reject, method, late });
  });
}
function heard(text) {
  const { id, result, error, method, params } = JSON.parse(text);
  if (id) {
    const { resolve, reject, method: of, late } = asked.get(id);
    clearTimeout(late);
    asked.delete(id);
    if (error) reject(new Error(`${of}: ${error.message}`));
    else resolve(result);
  } else if (method === 'Network.requestWillBeSent') {
    urls.set(params.requestId, params.request.url);
  } else if (method === 'Network.responseReceived' && params.response.status >= 400) {
    const { status, url } = params.response;
    if (!(status === 404 && NOT_SERVED.some((each) => each.test(url)))) trouble.push(`${status} ${url}`);
  } else if (method === 'Network.loadingFailed' && !params.canceled) {
    trouble.push(`${params.errorText} ${urls.get(params.requestId)}`);
  } else if (method === 'Runtime.exceptionThrown') {
    const { exception, text: said } = params.exceptionDetails;
    trouble.push(`exception: ${(exception?.description ?? said).slice(0, 400)}`);
  } else if (method === 'Runtime.consoleAPICalled' && params.type === 'error') {
    const said = params.args.map((each) => each.value ?? each.description ?? '').join(' ');
    if (!SAID.some((each) => each.test(said))) trouble.push(`console: ${said.slice(0, 400)}`);
  }
}
async function chromium() {
  const words = [
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-extensions',
    '--disable-background-networking',
    '--remote-debugging-pipe',
    `--user-data-dir=${join(work, 'profile')}`,
    '--window-size=1600,1200',
    'about:blank',
  ];
  browser = start('chromium', words, { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
  let rest = '';
  browser.stdio[4].on('data', (bytes) => {
    const parts = (rest + bytes).split('\0');
    rest = parts.pop();
    parts.forEach(heard);
  });
  const { targetId } = await send('Target.createTarget', { url: 'about:blank' });
  session = (await send('Target.attachToTarget', { targetId, flatten: true })).sessionId;
  for (const domain of ['Page', 'Network', 'Runtime']) await send(`${domain}.enable`);
}
async function value(expression) {
  const { result, exceptionDetails } = await send('Runtime.evaluate', {
    expression,
    awaitPromise: true,
    returnByValue: true,
  });
  if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description}`);
  return result.value;
}
const text = () => value('document.body ? document.body.innerText : ""');
let shot = 0;
/** Opens a page, and waits until it shows all of these texts and each of these selectors is there. */
async function see(name, route, texts, selectors = []) {
  const from = Date.now();
  await send('Page.navigate', { url: route });
  await shown(name, texts, selectors);
  console.log(`pages: ${name}: ${Date.now() - from} ms`);
}
async function shown(name, texts, selectors = []) {
  const missing = async () => {
    const seen = await text();
    const left = texts.filter((each) => !(each instanceof RegExp ? each.test(seen) : seen.includes(each)));
    for (const selector of selectors) {
      if (!(await value(`!!document.querySelector(${JSON.stringify(selector)})`))) left.push(selector);
    }
    return left;
  };
  const why = async () =>
    `${name}: ${(await missing()).join(', ')}; it shows: ${(await text()).slice(0, 1500)}; ${trouble.join('; ')}`;
  await until(why, async () => (await missing()).length === 0);
  if (shots)
    writeFileSync(
      join(shots, `${(shot += 1)}-${name.replaceAll(' ', '-')}.png`),
      Buffer.from((await send('Page.captureScreenshot')).data, 'base64'),
    );
  wrong.push(...new Set(trouble.splice(0).map((each) => `${name}: ${each}`)));
}
async function click(label) {
  const expression = `(() => { const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); let found;
    while (nodes.nextNode())
      if (nodes.currentNode.textContent.trim() === ${JSON.stringify(label)}) found = nodes.currentNode.parentElement;
    found?.click(); return !!found; })()`;
  await until(`'${label}' to click on`, () => value(expression));
}

async function main() {
  const began = Date.now();
  const opened = chromium();
  await until('the daemon', async () => {
    token = file('admin.token');
    if (!token || !file('endpoint')) return false;
    return fetch(`${file('endpoint')}/healthz`).then(
      (answer) => answer.ok,
      () => false,
    );
  });
  const { experiment, runs } = await log();
  const [slow, quick] = runs;
  const ui = start(atelier, [
    'ui',
    '--no-browser',
    '--pages',
    pages,
    '--server',
    file('endpoint'),
    '--token-file',
    join(data, 'admin.token'),
  ]);
  const said = [];
  for (const stream of [ui.stdout, ui.stderr])
    createInterface({ input: stream }).on('line', (line) => said.push(line));
  const address = await until(
    () => `the address of atelier ui: ${said.join('\n')}`,
    () => said.join(' ').match(/http:\/\/\S+sign-in\?code=\S+/)?.[0],
  );
  await opened;
  const root = new URL(address).origin;
  const of = `${root}/#/experiments/${experiment}`;

  await see('sign-in', address, [], ['#root, body']);
  await until('the pages', async () => (await text()).length > 20);
  await see('experiments', `${root}/#/experiments`, ['seen digits', 'Default']);
  await see('table of runs', `${of}/runs`, ['slow learner', 'quick learner', 'seen digits']);
  await see('run', `${of}/runs/${quick}`, [
    'quick learner',
    'accuracy',
    '0.8125',
    'rate-0.5',
    quick,
    'seen-model',
    'Finished',
  ]);
  await see(
    'charts',
    `${of}/runs/${quick}/model-metrics`,
    ['loss', 'accuracy'],
    ['.js-plotly-plot .scatterlayer path.js-line, .js-plotly-plot canvas'],
  );
  await see('artifacts', `${of}/runs/${quick}/artifacts`, ['notes', 'model']);
  await click('notes');
  await click('read-me.txt');
  await shown('an artifact', ['words of quick learner']);
  const both = encodeURIComponent(JSON.stringify([slow, quick]));
  const experiments = encodeURIComponent(JSON.stringify([experiment]));
  await see('compare', `${root}/#/compare-runs?runs=${both}&experiments=${experiments}`, [
    'slow learner',
    'quick learner',
    'rate-0.01',
    'rate-0.5',
    '0.813',
    '0.323',
  ]);
  await see('models', `${root}/#/models`, ['seen-model']);
  await see('version', `${root}/#/models/seen-model/versions/1`, ['seen-model', 'Inputs (1)']);
  if (wrong.length) throw new Error('what the pages asked for in vain or said as errors:');
  console.log(`pages: ok, in ${((Date.now() - began) / 1000).toFixed(1)} s`);
}

let status = 0;
try {
  await main();
} catch (error) {
  console.error(`pages: ${error.message}\n  ${wrong.join('\n  ')}`);
  status = 1;
} finally {
  for (const child of started.reverse()) {
    const over =
      child.exitCode === null && child.signalCode === null && new Promise((resolve) => child.once('exit', resolve));
    child.kill(child === daemon ? 'SIGTERM' : 'SIGKILL');
    await over;
  }
  rmSync(work, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
}
process.exit(status);
