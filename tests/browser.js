// node browser.js PLAYWRIGHT CHROMIUM PAGE < STEPS: opens the page, goes through the
// steps, and prints what it saw as JSON. A step is {press: key}, {click: selector},
// {focus: selector}, {set: [selector, value]}, {hover: selector}, {size: [width, height]}
// or {shoot: path}.
const [playwright, executablePath, page] = process.argv.slice(2);
const { chromium } = require(playwright);
const steps = JSON.parse(require("fs").readFileSync(0, "utf8"));

const ARGUMENTS = [
  "--no-sandbox", // as root
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

async function act(tab, step) {
  if (step.press) await tab.keyboard.press(step.press);
  if (step.click) await tab.click(step.click);
  if (step.focus) await tab.focus(step.focus);
  if (step.hover) await tab.hover(step.hover);
  if (step.size) await tab.setViewportSize({ width: step.size[0], height: step.size[1] });
  if (step.shoot) await tab.screenshot({ path: step.shoot, fullPage: true });
  if (!step.set) return;
  const [selector, value] = step.set;
  const isList = await tab.locator(selector).evaluate((node) => node.matches("select"));
  await (isList ? tab.selectOption(selector, value) : tab.fill(selector, value));
}

function look() {
  const canvas = document.getElementById("canvas");
  const context = canvas.getContext("2d");
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const read = (id) => document.getElementById(id).textContent;
  return {
    pixels: [...data],
    status: read("status"),
    pixel: read("pixel"),
    iteration: document.getElementById("iteration-shown").value,
    focus: document.activeElement.id,
    text: document.body.innerText,
    scroll: window.scrollY,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
}

async function main() {
  const browser = await chromium.launch({ executablePath, args: ARGUMENTS });
  const tab = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const [problems, requests] = [[], []];
  tab.on("console", (message) => problems.push(message.text()));
  tab.on("pageerror", (error) => problems.push(String(error)));
  tab.on("requestfailed", (request) => problems.push(request.url()));
  tab.on("request", (request) => requests.push(request.url().slice(0, 200)));
  await tab.goto(page);
  const seen = [];
  for (const step of [{}, ...steps]) {
    await act(tab, step);
    if (await tab.locator("#viewer").isVisible()) {
      await tab.waitForSelector('#canvas[aria-busy="false"]', { timeout: 10000 });
    }
    seen.push(await tab.evaluate(look));
  }
  await browser.close();
  console.log(JSON.stringify({ seen, problems, requests }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
