// Interactive versions of figure4_*.png: mean IoU and boundary F1 by iteration.

const CHART = { width: 520, height: 300, left: 46, right: 20, top: 18, bottom: 40 };

/** Returns a colour between violet and yellow, legible on light and dark backgrounds. */
function pickColor(index, count) {
  const hue = 275 - (230 * index) / Math.max(count - 1, 1);
  return `hsl(${hue.toFixed(0)} 62% 52%)`;
}

/** Lists three to seven round numbers in [low, high]. */
function listTicks(low, high, smallest = 0) {
  const raw = (high - low) / 7;
  const power = 10 ** Math.floor(Math.log10(raw));
  const factor = [1, 2, 5, 10].find((f) => f * power >= raw);
  const step = Math.max(factor * power, smallest);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/** Finds the range of the y axis; diverging curves are cut off below. */
function findRange(lines) {
  const known = (values) => values.filter((value) => value !== null);
  const ours = lines.filter((line) => !line.isOther);
  const values = known(ours.flatMap((line) => line.values));
  const all = known(lines.flatMap((line) => line.values));
  const plain = lines[0].values[0];
  const shown = Math.max(Math.max(...values) - plain, 0.5);
  const lowest = Math.min(...values);
  const cut = lowest < plain - 2 * shown;
  const low = cut ? plain - 2 * shown : Math.min(...all);
  const high = Math.max(...all);
  const margin = 0.1 * Math.max(high - low, 0.5);
  return { low: cut ? low : low - margin, high: high + margin, lowest: cut && lowest };
}

function drawPath(values, x, y) {
  const points = values.map((value, t) => value !== null && [x(t), y(value)]);
  return points
    .map((point, t) => point && `${points[t - 1] ? "L" : "M"}${point.join(" ")}`)
    .filter(Boolean)
    .join("");
}

/** Draws a panel; `lines` are {values, color, label, isChosen, isOther}. */
function drawPanel(title, lines, { num_iterations: chosen, follows }) {
  const { width, height, left, right, top, bottom } = CHART;
  const { low, high, lowest } = findRange(lines);
  const last = Math.max(...lines.map((line) => line.values.length)) - 1;
  const [innerWidth, innerHeight] = [width - left - right, height - top - bottom];
  const x = (t) => (innerWidth * t) / last;
  const y = (value) => (innerHeight * (high - value)) / (high - low);
  const text = (attributes, content) => createSvg("text", attributes, content);
  const svg = createSvg("svg", {
    class: "chart",
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `${title}; the values are in curve.npz and test.npz`,
  });
  const vertical = listTicks(low, high);
  for (const tick of vertical.ticks) {
    const at = top + y(tick);
    const ends = { x1: left, x2: width - right, y1: at, y2: at };
    const place = { x: left - 6, y: at + 4, "text-anchor": "end" };
    svg.append(createSvg("line", { class: "grid", ...ends }));
    svg.append(text(place, tick.toFixed(vertical.digits)));
  }
  for (const tick of listTicks(0, last, 1).ticks) {
    const place = { x: left + x(tick), y: height - 22, "text-anchor": "middle" };
    svg.append(text(place, String(tick)));
  }
  const middle = { x: left + innerWidth / 2, y: height - 5, "text-anchor": "middle" };
  svg.append(text(middle, `iterations (dotted: ${chosen}, chosen)`));

  const main = lines.find((line) => line.isChosen);
  const [plain, best] = [main.values[0], main.values[chosen]];
  const inner = createSvg("svg", {
    x: left,
    y: top,
    width: innerWidth,
    height: innerHeight,
  });
  const mark = (x1, x2, y1, y2) =>
    createSvg("line", { class: "mark", x1, x2, y1, y2 });
  inner.append(mark(0, innerWidth, y(plain), y(plain)));
  inner.append(mark(x(chosen), x(chosen), 0, innerHeight));
  for (const line of [...lines].sort((a, b) => a.isChosen - b.isChosen)) {
    const d = drawPath(line.values, x, y);
    inner.append(createSvg("path", { class: nameClass(line), d, stroke: line.color }));
  }
  const cursor = createSvg("line", { y1: 0, y2: innerHeight });
  inner.append(cursor);
  svg.append(inner);
  const plainPlace = { class: "plain", x: width - right, y: top + y(plain) - 5 };
  const label = `${follows || "segmenter alone"} ${formatNumber(plain)}`;
  svg.append(text({ ...plainPlace, "text-anchor": "end" }, label));
  if (lowest !== false) {
    const place = { class: "plain", x: left + 8, y: top + innerHeight - 8 };
    svg.append(text(place, `axis cut off; lowest value ${formatNumber(lowest)}`));
  }
  if (best !== null) {
    const [cx, cy] = [left + x(chosen), top + y(best)];
    svg.append(createSvg("circle", { class: "choice", cx, cy, r: 5 }));
    const place = { class: "value", x: cx, y: cy - 10, "text-anchor": "middle" };
    svg.append(text(place, formatNumber(best)));
  }
  const keys = lines.map(drawKey);
  const after = create("li");
  const show = (t) => {
    after.textContent = `after ${t}:`;
    keys.forEach((key, index) => {
      const value = lines[index].values[t] ?? null;
      key.lastChild.textContent = value === null ? "" : ` ${value.toFixed(2)}`;
    });
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const inside = ((event.clientX - box.left) / box.width) * width - left;
    const t = Math.min(Math.max(Math.round((inside / innerWidth) * last), 0), last);
    cursor.setAttribute("x1", x(t));
    cursor.setAttribute("x2", x(t));
    cursor.setAttribute("class", "cursor");
    show(t);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  show(chosen);
  const list = create("ul", { class: "keys" }, after, ...keys);
  return create("figure", {}, create("figcaption", {}, title), svg, list);
}

function drawKey(line) {
  const svg = createSvg(
    "svg",
    { class: "chart", viewBox: "0 0 26 10", "aria-hidden": "true" },
    createSvg("path", { class: nameClass(line), d: "M0 5L26 5", stroke: line.color }),
  );
  return create("li", {}, svg, line.label, create("b"));
}

function nameClass(line) {
  return `curve${line.isChosen ? " chosen" : ""}${line.isOther ? " other" : ""}`;
}

/** Draws the panels of a refiner; refiners without controls are dashed beside it. */
function drawCurves(refiner, others) {
  const panels = drawPair("mean IoU", refiner.validation, refiner.test, refiner, others);
  const parts = [create("h3", {}, refiner.title), panels];
  if (refiner.boundary_f1) {
    parts.push(drawPair("boundary F1", ...refiner.boundary_f1, refiner, []));
  }
  return parts;
}

/** Draws one measure, in per cent, on validation and on test. */
function drawPair(name, onValidation, onTest, refiner, others) {
  const count = refiner.step_sizes.length;
  const ours = refiner.step_sizes.map((size, index) => ({
    values: onValidation[index],
    color: pickColor(index, count),
    label: `step size ${size}${index === refiner.chosen ? " (chosen)" : ""}`,
    isChosen: index === refiner.chosen,
    isOther: false,
  }));
  const dashed = (pick) =>
    others.map((other, index) => ({
      values: pick(other),
      color: `hsl(${[5, 28, 330, 200][index % 4]} 70% 55%)`,
      label: other.title,
      isChosen: false,
      isOther: true,
    }));
  const validation = [...ours, ...dashed((other) => other.validation[other.chosen])];
  const chosen = { ...ours[refiner.chosen], values: onTest };
  const test = [chosen, ...dashed((other) => other.test)];
  const size = refiner.step_sizes[refiner.chosen];
  return create(
    "div",
    { class: "panels" },
    drawPanel(
      `${name} on validation, used for the choice`,
      validation,
      refiner,
    ),
    drawPanel(
      `${name} on test, not used for any choice (step size ${size})`,
      test,
      refiner,
    ),
  );
}

const iterating = report.curves.filter((refiner) => refiner.test.length > 2);
for (const refiner of iterating) {
  const others = iterating.filter(
    (other) => refiner.has_controls && !other.has_controls && !other.follows,
  );
  find("curves").append(...drawCurves(refiner, others));
}
if (!iterating.length) find("curves").append("No refiner runs more than one iteration.");
