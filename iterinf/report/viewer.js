// The viewer: shows an image for a chosen refiner, step size and iteration.

const VIEWS = ["image", "truth", "network", "refined", "changes"];
const CORRECTED = [90, 230, 120]; // as in figures.py
const DEGRADED = [210, 30, 40];
const VOID = report.classes.length;

const state = {
  image: 0,
  refiner: report.curves.length - 1,
  stepSize: 0, // an index, like the two above
  iteration: 0,
  view: "refined",
};
let shown = null; // the label maps of `state`, once unpacked
let request = 0;

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream();
  const inflated = stream.pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(inflated).arrayBuffer());
}

/** Inverts `pack_maps` of trajectories.py: each map is XORed with the previous one. */
async function unpack(text, start) {
  const maps = await inflate(text);
  for (let i = 0; i < start.length; i++) maps[i] ^= start[i];
  for (let i = start.length; i < maps.length; i++) maps[i] ^= maps[i - start.length];
  return maps;
}

async function readPhoto({ photo, width, height }) {
  const image = new Image();
  image.src = photo;
  await image.decode();
  const canvas = create("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

async function unpackState() {
  const image = report.images[state.image];
  const refiner = report.curves[state.refiner].name;
  const packed = image.refined[refiner][state.stepSize];
  const nothing = new Uint8Array(image.width * image.height);
  const [label, segmented, photo] = await Promise.all([
    unpack(image.label, nothing),
    unpack(image.segmented, nothing),
    readPhoto(image),
  ]);
  return { label, segmented, photo, maps: await unpack(packed, segmented) };
}

/** Unpacks and paints the maps of `state`, unless `state` has changed meanwhile. */
async function load() {
  const ticket = ++request;
  shown = null;
  find("canvas").setAttribute("aria-busy", true);
  try {
    const unpacked = await unpackState();
    if (ticket !== request) return;
    shown = unpacked;
    paint();
  } catch (error) {
    find("status").textContent = `Cannot unpack the images: ${error}`;
  }
}

function getRefined() {
  const size = shown.label.length;
  return shown.maps.subarray(state.iteration * size, (state.iteration + 1) * size);
}

/** Returns the function from a pixel's index to its [red, green, blue] in the view. */
function makePainter(refined) {
  const { photo, label, segmented } = shown;
  const pixel = (i) => [photo[4 * i], photo[4 * i + 1], photo[4 * i + 2]];
  if (state.view === "image") return pixel;
  if (state.view === "changes") {
    return (i) => {
      const [red, green, blue] = pixel(i);
      const grey = (red + green + blue) / 6;
      if (label[i] >= VOID || segmented[i] === refined[i]) return [grey, grey, grey];
      if (refined[i] === label[i]) return CORRECTED;
      return segmented[i] === label[i] ? DEGRADED : [grey, grey, grey];
    };
  }
  const map = { truth: label, network: segmented, refined }[state.view];
  const share = find("photo").value / 100;
  return (i) => {
    const color = report.colors[Math.min(map[i], VOID)];
    if (!share) return color;
    return pixel(i).map((value, c) => share * value + (1 - share) * color[c]);
  };
}

function paint() {
  if (!shown) return;
  const { width, height } = report.images[state.image];
  const canvas = find("canvas");
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const target = context.createImageData(width, height);
  const refined = getRefined();
  const painter = makePainter(refined);
  for (let i = 0; i < width * height; i++) {
    target.data.set(painter(i), 4 * i);
    target.data[4 * i + 3] = 255;
  }
  context.putImageData(target, 0, 0);
  canvas.setAttribute("aria-busy", false);
  describe(refined);
}

/** Describes the view in words; percentages are of the non-void pixels. */
function describe(refined) {
  const { label, segmented } = shown;
  let [counted, before, after, corrected, degraded] = [0, 0, 0, 0, 0];
  for (let i = 0; i < label.length; i++) {
    if (label[i] >= VOID) continue;
    counted++;
    before += segmented[i] === label[i];
    after += refined[i] === label[i];
    corrected += segmented[i] !== label[i] && refined[i] === label[i];
    degraded += segmented[i] === label[i] && refined[i] !== label[i];
  }
  const percent = (count) => `${((100 * count) / Math.max(counted, 1)).toFixed(1)}%`;
  const { title } = report.curves[state.refiner];
  find("status").replaceChildren(
    create("strong", {}, `${percent(after)} of pixels correct`),
    ` after ${state.iteration} iteration${state.iteration === 1 ? "" : "s"} of ${title}; ${percent(before)} for the segmenter ` +
      `alone. Corrected: ${percent(corrected)}; degraded: ${percent(degraded)}. ` +
      "Test images are not used for any choice.",
  );
  const { name } = report.images[state.image];
  find("canvas").setAttribute("aria-label", `${state.view} of test image ${name}`);
  drawLegend(new Set([...label, ...segmented, ...refined]));
}

function drawLegend(labels) {
  const entry = (color, name) => {
    const style = `background: rgb(${color.join(",")})`;
    return create("li", {}, create("span", { class: "swatch", style }), name);
  };
  const changes = [entry(CORRECTED, "corrected"), entry(DEGRADED, "degraded")];
  const classes = [...new Set([...labels].map((k) => Math.min(k, VOID)))]
    .sort((a, b) => a - b)
    .map((k) => entry(report.colors[k], report.classes[k] ?? "void"));
  find("legend").replaceChildren(...(state.view === "changes" ? changes : classes));
}

/** Names the classes of the pixel under the pointer. */
function describePixel(event) {
  if (!shown) return;
  const { width, height } = report.images[state.image];
  const box = find("canvas").getBoundingClientRect();
  const pick = (offset, length, size) =>
    Math.min(Math.max(Math.floor((offset / length) * size), 0), size - 1);
  const x = pick(event.clientX - box.left, box.width, width);
  const y = pick(event.clientY - box.top, box.height, height);
  const i = y * width + x;
  const name = (map) => report.classes[map[i]] ?? "void";
  find("pixel").textContent =
    `pixel ${x}, ${y}: truth ${name(shown.label)}, network ${name(shown.segmented)}, ` +
    `refined ${name(getRefined())}`;
}

/** Sets the controls to `state`. */
function showControls() {
  const refiner = report.curves[state.refiner];
  const last = refiner.test.length - 1;
  const chosen = state.iteration === refiner.num_iterations ? " (chosen)" : "";
  const start = state.iteration === 0 ? " (initial prediction)" : "";
  find("iteration").max = last;
  find("iteration").value = state.iteration;
  find("iteration-shown").value = `${state.iteration} of ${last}${chosen}${start}`;
  find("photo-shown").value = `${find("photo").value}%`;
  find("photo").disabled = state.view === "image" || state.view === "changes";
  find("refiner").value = state.refiner;
  find("step-size").value = state.stepSize;
  for (const button of find("views").children) {
    button.setAttribute("aria-pressed", button.dataset.view === state.view);
  }
  [...find("list").children].forEach((button, index) => {
    button.setAttribute("aria-pressed", index === state.image);
    const gained = report.images[index].gained[refiner.name];
    button.lastChild.lastChild.textContent =
      `${gained < 0 ? "lost" : "gained"} ${Math.abs(gained)} pixels`;
  });
}

/** Changes `state`, and unpacks other maps if necessary. */
function update(changes) {
  const isKept = !("image" in changes || "stepSize" in changes);
  Object.assign(state, changes);
  showControls();
  if (isKept) paint();
  else load();
}

function chooseRefiner(index) {
  const refiner = report.curves[index];
  find("step-size").replaceChildren(
    ...refiner.step_sizes.map((size, step) => {
      const name = step === refiner.chosen ? `${size} (chosen)` : String(size);
      return create("option", { value: step }, name);
    }),
  );
  const { chosen, num_iterations: iteration } = refiner;
  update({ refiner: index, stepSize: chosen, iteration });
}

function chooseImage(index) {
  const image = Math.min(Math.max(index, 0), report.images.length - 1);
  const [list, button] = [find("list"), find("list").children[image]];
  list.scrollLeft = button.offsetLeft - (list.clientWidth - button.offsetWidth) / 2;
  list.scrollTop = button.offsetTop - (list.clientHeight - button.offsetHeight) / 2;
  if (list.contains(document.activeElement)) button.focus({ preventScroll: true });
  update({ image });
}

function chooseIteration(iteration) {
  const last = report.curves[state.refiner].test.length - 1;
  update({ iteration: Math.min(Math.max(iteration, 0), last) });
}

/** Handles keys; up and down also scroll the page, so they need the viewer's focus. */
function pressKey(event) {
  const { target, key } = event;
  const isInside = find("viewer").contains(target);
  const isElsewhere = !isInside && target !== document.body;
  if (isElsewhere || event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.matches("select, #photo")) return;
  const moves = {
    ArrowLeft: () => chooseIteration(state.iteration - 1),
    ArrowRight: () => chooseIteration(state.iteration + 1),
  };
  VIEWS.forEach((view, index) => (moves[index + 1] = () => update({ view })));
  if (isInside) {
    moves.ArrowUp = () => chooseImage(state.image - 1);
    moves.ArrowDown = () => chooseImage(state.image + 1);
  }
  if (!(key in moves)) return;
  event.preventDefault();
  moves[key]();
}

function buildViewer() {
  find("order").append(
    `${report.images.length} of ${report.num_test} test images, ordered by the number ` +
      `of pixels gained with ${report.curves.at(-1).title}, from most gained to most lost.`,
  );
  report.images.forEach(({ name, photo }, index) => {
    const thumbnail = create("img", { src: photo, alt: "" });
    const text = create("span", {}, name, create("br"), create("span"));
    const button = create("button", { type: "button" }, thumbnail, text);
    button.addEventListener("click", () => chooseImage(index));
    find("list").append(button);
  });
  VIEWS.forEach((view, index) => {
    const options = { type: "button", "data-view": view };
    const button = create("button", options, `${index + 1} ${view}`);
    button.addEventListener("click", () => update({ view }));
    find("views").append(button);
  });
  report.curves.forEach((refiner, index) => {
    find("refiner").append(create("option", { value: index }, refiner.title));
  });
  const listen = (id, act) =>
    find(id).addEventListener("input", (event) => act(Number(event.target.value)));
  listen("iteration", chooseIteration);
  listen("refiner", chooseRefiner);
  listen("step-size", (stepSize) => update({ stepSize }));
  listen("photo", () => update({}));
  find("canvas").addEventListener("pointermove", describePixel);
  find("canvas").addEventListener("pointerdown", describePixel);
  document.addEventListener("keydown", pressKey);
  chooseRefiner(state.refiner);
}

if (report.images.length) buildViewer();
else find("viewer").hidden = true;
