// The page: what a person has asked for, in the form and in the address, and the search for it.

import { column, imageAddress, make, moveFocus } from "./results.js";

const at = (id) => document.getElementById(id);
const form = at("form");
const state = { image: null, imageUrl: null, like: null, likeEntry: null, chosen: false };
let about = null;
let latest = 0;

const kind = () => form.elements.kind.value;
const queryKind = () => {
  const text = at("text").value.trim() !== "";
  return state.image ? (text ? "image,text" : "image") : "text";
};

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer: is it still running?");
  }
  let body = null;
  try {
    body = await answer.json();
  } catch {
    throw new Error(`The server answered with ${answer.status} and no JSON.`);
  }
  if (!answer.ok) throw new Error(body.error || `The server refused (${answer.status}).`);
  return body;
}

// --- what is asked for ---------------------------------------------------------------------------

function request(instruction) {
  const asked = { instruction, kind: kind() || null, k: Number(at("k").value) || 12 };
  asked.method = at("method").value;
  asked.dimension = Number(at("dimension").value) || null;
  asked.collapse = at("collapse").checked;
  asked.rerank = at("rerank").checked;
  if (at("text").value.trim()) asked.text = at("text").value;
  if (state.image) asked.image = state.image;
  if (state.like) asked.like = state.like;
  return asked;
}

function fitPresets() {
  const query = queryKind();
  const target = kind();
  const fitting = about.presets.filter(
    (one) => one.query === query && (!target || one.target === target),
  );
  const select = at("preset");
  select.replaceChildren(
    make("option", { value: "", text: "Presets" }),
    make("option", { value: "auto", text: "Automatic, by what is sought" }),
    make("option", { value: "none", text: "No instruction" }),
    ...fitting.map((one) => make("option", { value: "=" + one.text, text: one.text })),
  );
  if (!state.chosen) {
    at("instruction").value = target && fitting.length ? fitting[0].text : "";
  }
}

function showChips() {
  const chips = at("chips");
  chips.replaceChildren();
  const chip = (source, label, name, remove) =>
    chips.append(
      make(
        "span",
        { class: "chip" },
        source ? make("img", { src: source, alt: "" }) : null,
        make("span", { dir: "auto", text: label }),
        make("button", { type: "button", "aria-label": `Remove ${name}`, text: "×", onclick: remove }),
      ),
    );
  if (state.image) {
    chip(state.imageUrl, "your picture", "the picture", () => {
      forgetImage();
      changed();
    });
  }
  if (state.likeEntry) {
    const entry = state.likeEntry;
    const source = entry.image ? imageAddress(entry.id, "small") : null;
    chip(source, `like ${entry.text || entry.name}`.slice(0, 60), "more like this", () => {
      state.like = state.likeEntry = null;
      changed();
    });
  }
}

function changed() {
  showChips();
  fitPresets();
  at("text").focus();
}

function forgetImage() {
  if (state.imageUrl) URL.revokeObjectURL(state.imageUrl);
  state.image = state.imageUrl = null;
}

function takeImage(file) {
  if (!file) return;
  const most = Math.floor((about.limits.body_bytes - 65536) * 0.74);
  if (file.size > most) {
    showProblem(`This picture has ${(file.size / 2 ** 20).toFixed(1)} MiB; at most ` +
      `${(most / 2 ** 20).toFixed(1)} are taken. Make it smaller.`);
    return;
  }
  const reader = new FileReader();
  reader.addEventListener("load", () => {
    forgetImage();
    state.image = reader.result.slice(reader.result.indexOf(",") + 1);
    state.imageUrl = URL.createObjectURL(file);
    showChips();
    fitPresets();
    search();
  });
  reader.addEventListener("error", () => showProblem("This picture could not be read."));
  reader.readAsDataURL(file);
}

// --- the address ---------------------------------------------------------------------------------

function toAddress() {
  const asked = new URLSearchParams();
  const put = (name, value, plain) => value && value !== plain && asked.set(name, value);
  put("q", at("text").value.trim());
  put("like", state.like);
  put("kind", kind());
  if (state.chosen) asked.set("i", at("instruction").value);
  if (at("beside").checked) asked.set("i2", at("instruction2").value);
  put("k", at("k").value, "12");
  put("method", at("method").value, "exact");
  put("dimension", at("dimension").value, String(about.dimensions[0]));
  if (!at("collapse").checked) asked.set("copies", "1");
  if (at("rerank").checked) asked.set("rerank", "1");
  const search = asked.toString();
  return search ? "/?" + search : "/";
}

async function fromAddress() {
  const asked = new URLSearchParams(location.search);
  forgetImage();
  at("text").value = asked.get("q") || "";
  const wanted = form.querySelector(`input[name=kind][value="${CSS.escape(asked.get("kind") || "")}"]`);
  (wanted || form.querySelector("input[name=kind]")).checked = true;
  state.chosen = asked.has("i");
  at("instruction").value = asked.get("i") || "";
  at("beside").checked = asked.has("i2");
  at("instruction2").value = asked.get("i2") || "";
  at("second").hidden = !asked.has("i2");
  at("k").value = asked.get("k") || "12";
  at("method").value = about.methods.includes(asked.get("method")) ? asked.get("method") : "exact";
  const width = Number(asked.get("dimension"));
  at("dimension").value = String(about.dimensions.includes(width) ? width : about.dimensions[0]);
  at("collapse").checked = !asked.has("copies");
  at("rerank").checked = asked.has("rerank") && about.reranker;
  state.like = asked.get("like");
  state.likeEntry = null;
  if (state.like) {
    try {
      state.likeEntry = await ask("/api/item?" + new URLSearchParams({ id: state.like }));
    } catch (error) {
      state.like = null;
      showProblem(error.message);
    }
  }
  grow();
  showChips();
  fitPresets();
}

// --- the search ----------------------------------------------------------------------------------

function showProblem(sentence) {
  at("problem").textContent = sentence;
  at("problem").hidden = !sentence;
}

async function search({ record = true } = {}) {
  if (!state.image && !state.like && !at("text").value.trim()) {
    at("results").replaceChildren(welcome());
    document.title = about.name;
    if (record && location.search) history.pushState(null, "", "/");
    at("status").textContent = "";
    return;
  }
  const mine = ++latest;
  if (record && toAddress() !== location.pathname + location.search) {
    history.pushState(null, "", toAddress());
  }
  showProblem("");
  document.body.classList.add("busy");
  at("status").textContent = "Searching…";
  const instructions = [at("instruction").value];
  if (at("beside").checked) instructions.push(at("instruction2").value);
  try {
    const answers = await Promise.all(
      instructions.map((instruction) =>
        ask("/api/search", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(request(instruction)),
        }),
      ),
    );
    if (mine !== latest) return;
    const shown = { wanted: kind(), titled: answers.length > 1 };
    const columns = answers.map((answer) => column(answer, { like, enlarge }, shown));
    at("results").replaceChildren(...columns);
    at("results").classList.toggle("beside", answers.length > 1);
    const count = answers[0].hits.length;
    const lost = state.image ? " The address cannot hold your picture; all else is in it." : "";
    at("status").textContent =
      `${count} ${count === 1 ? "result" : "results"} in ${Math.round(answers[0].total_ms)} ms.${lost}`;
    document.title = `${at("text").value.trim().slice(0, 60) || "more like this"} · ${about.name}`;
  } catch (error) {
    if (mine !== latest) return;
    at("status").textContent = "";
    at("results").replaceChildren();
    showProblem(error.message);
  } finally {
    if (mine === latest) document.body.classList.remove("busy");
  }
}

function like(hit) {
  forgetImage();
  state.like = hit.id;
  state.likeEntry = hit;
  at("text").value = "";
  grow();
  showChips();
  fitPresets();
  search().then(() => {
    scrollTo({ top: 0 });
    at("results").focus({ preventScroll: true });
  });
}

function enlarge(hit) {
  at("large-body").replaceChildren(
    make("img", { src: imageAddress(hit.id, "large"), alt: hit.text || hit.name }),
    make("p", { dir: "auto", text: hit.text || hit.name }),
  );
  at("large").showModal();
}

function welcome() {
  const counts = Object.entries(about.counts).filter(([, count]) => count);
  const names = { image: "images", text: "texts", "image,text": "images with text" };
  const tiles = counts.map(([one, count]) =>
    make(
      "li",
      { class: one.replace(",", "-") },
      make("strong", { text: count.toLocaleString("en") }),
      make("span", { text: names[one] }),
    ),
  );
  return make(
    "div",
    { class: "welcome" },
    make("ul", {}, ...tiles),
    make("p", {
      class: "quiet",
      text: "Search them by words in any language, by a picture, or by a picture and what should differ.",
    }),
  );
}

// --- the form ------------------------------------------------------------------------------------

function grow() {
  const box = at("text");
  box.style.height = "auto";
  box.style.height = Math.min(box.scrollHeight, 160) + "px";
}

function listen() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  at("text").addEventListener("input", () => {
    grow();
    fitPresets();
  });
  at("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      search();
    }
  });
  at("instruction").addEventListener("input", () => (state.chosen = true));
  at("preset").addEventListener("change", (event) => {
    const value = event.target.value;
    state.chosen = value !== "auto" && value !== "";
    if (value.startsWith("=")) at("instruction").value = value.slice(1);
    if (value === "none") at("instruction").value = "";
    fitPresets();
    search();
  });
  for (const id of ["kinds", "rerank", "k", "method", "dimension", "collapse", "beside"]) {
    at(id).addEventListener("change", () => {
      at("second").hidden = !at("beside").checked;
      // The index knows whole vectors only.
      at("dimension").disabled = at("method").value !== "exact";
      if (at("dimension").disabled) at("dimension").value = String(about.dimensions[0]);
      fitPresets();
      search();
    });
  }
  at("pick").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => {
    takeImage(at("file").files[0]);
    at("file").value = "";
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    const picture = files.find((file) => file.type.startsWith("image/"));
    if (picture) {
      event.preventDefault();
      takeImage(picture);
    }
  });
  const over = (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  };
  document.addEventListener("dragenter", over);
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    takeImage(event.dataTransfer.files[0]);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      at("text").focus();
      at("text").select();
    }
    if (event.key === "ArrowDown" && event.target === at("text") && !at("text").value.includes("\n")) {
      const first = document.querySelector(".hit");
      if (first) {
        event.preventDefault();
        first.focus();
      }
    }
    moveFocus(event);
  });
  at("large").addEventListener("click", (event) => {
    if (event.target === at("large")) at("large").close();
  });
  addEventListener("popstate", async () => {
    await fromAddress();
    search({ record: false });
  });
  at("home").addEventListener("click", async (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", "/");
    await fromAddress();
    search({ record: false });
    at("text").focus();
  });
}

async function start() {
  try {
    about = await ask("/api/collection");
  } catch (error) {
    showProblem(error.message);
    return;
  }
  at("name").textContent = about.name;
  at("about").textContent = `${about.count.toLocaleString("en")} entries · ${about.model}`;
  at("k").max = String(about.limits.k);
  const names = { exact: "exact", scann: "ScaNN" };
  at("method").append(...about.methods.map((one) => make("option", { value: one, text: names[one] })));
  at("dimension").append(
    ...about.dimensions.map((one) => make("option", { value: String(one), text: String(one) })),
  );
  at("rerank-box").hidden = !about.reranker;
  listen();
  await fromAddress();
  await search({ record: false });
  if (!location.search) at("text").focus();
}

// Until the page listens, a dropped picture must not be opened in its place.
for (const type of ["dragover", "drop"]) {
  document.addEventListener(type, (event) => event.preventDefault());
}
start().finally(() => document.body.classList.remove("starting"));
