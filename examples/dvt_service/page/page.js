// The page: sends each dropped image to /predict and shows which exit took it.

const OWN = "own thresholds";
const MOST_RESULTS = 50;

const drop = document.querySelector("#drop");
const file = document.querySelector("#file");
const setting = document.querySelector("#setting");
const own = document.querySelector("#own");
const results = document.querySelector("#results");

const model = await (await fetch("model")).json();
const exits = model.cumulative_gmacs.length;
const taken = new Array(exits).fill(0);

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text; // never as HTML: labels and file names are not ours
  made.className = className;
  return made;
}

function describe({ name, expected_gmacs: gmacs, accuracy }) {
  const known = [gmacs === null ? "" : `${gmacs.toPrecision(3)} GMACs`, accuracy === null ? "" : `${accuracy} %`];
  const facts = known.filter(Boolean).join(", ");
  return facts ? `${name} (${facts} in calibration)` : name;
}

document.querySelector("#about").textContent =
  `${model.model}: ${exits} exits, from ${model.cumulative_gmacs[0].toPrecision(3)} to ` +
  `${model.cumulative_gmacs[exits - 1].toPrecision(3)} GMACs per image, on ${model.runs_on}.`;
for (const each of model.settings) setting.append(new Option(describe(each), each.name));
setting.append(new Option("Thresholds of your own", OWN));
for (let exit = 1; exit < exits; exit++) {
  const input = element("input");
  Object.assign(input, { type: "number", min: 0, max: 1.01, step: 0.01, value: 0.8, ariaLabel: `Threshold of exit ${exit}` });
  const label = element("label", `exit ${exit} from `);
  label.append(input);
  own.append(label);
}
const showOwn = () => (own.hidden = setting.value !== OWN);
setting.addEventListener("change", showOwn);
showOwn();

function query() {
  if (setting.value !== OWN) return `setting=${encodeURIComponent(setting.value)}`;
  // The last exit takes every image that is left, whatever its threshold.
  return `thresholds=${[...own.querySelectorAll("input")].map((input) => input.value).join(",")},0`;
}

function exitBar(exit) {
  const bar = element("div", "", "exits");
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `left at exit ${exit} of ${exits}`);
  for (let index = 1; index <= exits; index++) {
    bar.append(element("span", `exit ${index}`, index === exit ? "taken" : index < exit ? "passed" : ""));
  }
  return bar;
}

async function classify(image) {
  const item = element("li");
  const picture = element("img");
  picture.alt = "";
  picture.addEventListener("error", () => (picture.style.visibility = "hidden")); // the file is no image
  picture.src = URL.createObjectURL(image);
  const text = element("div");
  text.append(element("p", "…", "label"));
  item.append(picture, text);
  results.prepend(item);
  while (results.children.length > MOST_RESULTS) {
    URL.revokeObjectURL(results.lastChild.querySelector("img").src);
    results.lastChild.remove();
  }
  try {
    const response = await fetch(`predict?${query()}`, { method: "POST", body: image });
    const content = await response.json();
    if (!response.ok) throw new Error(content.detail);
    taken[content.exit - 1] += 1;
    text.replaceChildren(
      element("p", `${content.label} (${(100 * content.confidence).toFixed(1)} %)`, "label"),
      element("p", `${image.name}: ${content.milliseconds} ms, ${content.gmacs.toPrecision(3)} GMACs`, "facts"),
      exitBar(content.exit),
    );
    const count = taken.reduce((sum, each) => sum + each);
    const shares = taken.map((each, index) => `exit ${index + 1}: ${((100 * each) / count).toFixed(0)} %`);
    document.querySelector("#shares").textContent = `${count} image${count === 1 ? "" : "s"} on this page; ${shares.join(", ")}`;
  } catch (error) {
    text.replaceChildren(element("p", image.name, "label"), element("p", error.message, "facts error"));
  }
}

async function classifyAll(images) {
  for (const image of images) await classify(image); // one after the other: a folder of them shall not fill the queue
}

file.addEventListener("change", () => classifyAll([...file.files]).then(() => (file.value = "")));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // a file that misses the field shall not replace the page
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") classifyAll([...event.dataTransfer.files]);
  });
}
drop.dataset.ready = "true";
