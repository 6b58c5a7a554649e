"use strict";
// The summary, the tables and the provenance; helpers for charts.js and viewer.js.

const report = JSON.parse(document.getElementById("document").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; strings become text, never markup. */
function create(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function createSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function find(id) {
  return document.getElementById(id);
}

function formatNumber(value) {
  return value === null ? "" : value.toFixed(1).replace(/^-(0\.0)$/, "$1");
}

/** Formats percentage points with a sign; zero is 0.0. */
function formatGain(value) {
  const text = formatNumber(value);
  return Number(text) > 0 ? `+${text}` : text.replace("-", "−");
}

function formatInterval(row) {
  return `${formatGain(row.gain_low)} to ${formatGain(row.gain_high)}`;
}

function createSwatch(label) {
  return create("span", {
    class: "swatch",
    style: `background: rgb(${report.colors[label].join(",")})`,
  });
}

/** Summarises the last refiner of the table. */
function summarise() {
  const [plain, last] = [report.rows[0], report.rows.at(-1)];
  find("summary").append(
    `Test mean IoU: ${formatNumber(plain.mean_iou)} for the segmenter alone, ` +
      `${formatNumber(last.mean_iou)} for ${last.model}, a gain of ` +
      `${formatGain(last.gain)} points (95% interval ${formatInterval(last)}).`,
  );
}

/** Draws a gain as a point and its interval as a bar; the dashed line is zero. */
function drawInterval(row, low, high) {
  const place = (value) => 4 + (136 * (value - low)) / (high - low);
  const line = (name, x1, x2, y1, y2) =>
    createSvg("line", { class: name, x1, x2, y1, y2 });
  return createSvg(
    "svg",
    { class: "interval", viewBox: "0 0 144 22", "aria-hidden": "true" },
    line("zero", place(0), place(0), 0, 22),
    line("bar", place(row.gain_low), place(row.gain_high), 11, 11),
    createSvg("circle", { cx: place(row.gain), cy: 11, r: 4 }),
  );
}

function fillTable() {
  const titles = ["model", "mean IoU", "gain", "95% interval", "", "accuracy"];
  const columns = [...titles, "step size", "iterations"];
  const gains = report.rows.flatMap((row) => [row.gain, row.gain_low, row.gain_high]);
  const low = Math.min(0, ...gains);
  const high = Math.max(low + 0.1, ...gains);
  const best = Math.max(...report.rows.map((row) => row.mean_iou));
  const lines = report.rows.map((row, index) => {
    const cells = index
      ? [formatGain(row.gain), formatInterval(row), drawInterval(row, low, high)]
      : ["", "", ""];
    const settings = [row.step_size ?? "", index ? row.num_iterations : ""];
    return create(
      "tr",
      { class: row.is_control && "control" },
      create("th", { scope: "row" }, row.model),
      create(
        "td",
        { class: row.mean_iou === best && "best" },
        formatNumber(row.mean_iou),
      ),
      ...[...cells, formatNumber(row.global_accuracy), ...settings].map((cell) =>
        create("td", {}, cell instanceof Node ? cell : String(cell)),
      ),
    );
  });
  find("table").append(createHead(columns), create("tbody", {}, ...lines));
}

function createHead(titles) {
  const cells = titles.map((title) =>
    title ? create("th", { scope: "col" }, title) : create("td"),
  );
  return create("thead", {}, create("tr", {}, ...cells));
}

/** Fills the table of IoU per class; changes from the segmenter alone are coloured. */
function fillClasses() {
  const rows = report.rows.filter((row) => !row.is_control);
  const [plain] = rows;
  const change = (row, k) =>
    row.class_iou[k] === null || plain.class_iou[k] === null
      ? null
      : row.class_iou[k] - plain.class_iou[k];
  const sizes = rows.flatMap((row) =>
    report.classes.map((_, k) => Math.abs(change(row, k) ?? 0)),
  );
  const largest = Math.max(1, ...sizes);
  const lines = report.classes.map((name, k) =>
    create(
      "tr",
      {},
      create("th", { scope: "row" }, createSwatch(k), name),
      ...rows.map((row) => {
        const points = row === plain ? null : change(row, k);
        const color = points > 0 ? "--corrected" : "--degraded";
        const strength = (0.55 * Math.abs(points ?? 0)) / largest;
        const cell = create(
          "td",
          { style: `background: rgba(var(${color}), ${strength.toFixed(3)})` },
          formatNumber(row.class_iou[k]),
        );
        const text = points === null ? "" : ` (${formatGain(points)})`;
        if (row !== plain) cell.append(create("span", { class: "change" }, text));
        return cell;
      }),
    ),
  );
  const titles = ["class", ...rows.map((row) => row.model)];
  find("classes").append(createHead(titles), create("tbody", {}, ...lines));
}

/** Fills the table of the other measures and the intervals of their differences. */
function fillMeasures() {
  const titles = report.measures.flatMap((title) => [title, "95% interval"]);
  const lines = report.rows.map((row, index) => {
    const cells = row.measures.flatMap(([value, interval]) => [
      value,
      index ? interval : "",
    ]);
    return create(
      "tr",
      { class: row.is_control && "control" },
      create("th", { scope: "row" }, row.model),
      ...cells.map((cell) => create("td", {}, cell)),
    );
  });
  const body = create("tbody", {}, ...lines);
  find("measures").append(createHead(["model", ...titles]), body);
}

function fillProvenance() {
  for (const [name, value] of Object.entries(report.provenance)) {
    find("provenance").append(
      create("dt", {}, name),
      create("dd", {}, create(name === "command" ? "code" : "span", {}, String(value))),
    );
  }
  find("config").append(JSON.stringify(report.config, null, 2));
}

summarise();
fillTable();
find("notes").append(...report.notes.map((note) => create("li", {}, note)));
fillClasses();
fillMeasures();
fillProvenance();
