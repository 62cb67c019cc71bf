// The page: what a person has asked for, in the form and in the address, and the search for it.

import { forgetPicture, listenForPictures, picture } from "./picture.js";
import { column, imageAddress, make, moveFocus, welcome } from "./results.js";

const at = (id) => document.getElementById(id);
const form = at("form");
const state = { like: null, likeEntry: null, chosen: false };
let about = null;
let latest = 0; // what was asked for last; an answer to anything before it is not shown

const kind = () => form.elements.kind.value;
const queryKind = () => {
  const text = at("text").value.trim() !== "";
  return picture.data ? (text ? "image,text" : "image") : "text";
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
  if (picture.data) asked.image = picture.data;
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
  if (picture.data) {
    chip(picture.address, "your picture", "the picture", () => {
      forgetPicture();
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

// Fills the form from the address and searches: at the start, by Back, and by the home link.
async function follow() {
  const mine = ++latest;
  const asked = new URLSearchParams(location.search);
  let like = asked.get("like");
  let likeEntry = null;
  let problem = "";
  if (like) {
    try {
      likeEntry = await ask("/api/item?" + new URLSearchParams({ id: like }));
    } catch (error) {
      like = null;
      problem = error.message;
    }
    if (mine !== latest) return; // another address, or another search, has come meanwhile
  }
  forgetPicture();
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
  state.like = like;
  state.likeEntry = likeEntry;
  grow();
  showChips();
  fitPresets();
  await search({ record: false, problem });
}

// --- the search ----------------------------------------------------------------------------------

function showProblem(sentence) {
  at("problem").textContent = sentence;
  at("problem").hidden = !sentence;
}

async function search({ record = true, problem = "" } = {}) {
  const mine = ++latest;
  showProblem(problem);
  document.body.classList.remove("busy");
  const read = picture.data || at("text").value.trim();
  if (!read && !state.like) {
    at("results").replaceChildren(welcome(about));
    document.title = about.name;
    if (record && location.search) history.pushState(null, "", "/");
    at("status").textContent = "";
    return;
  }
  if (record && toAddress() !== location.pathname + location.search) {
    history.pushState(null, "", toAddress());
  }
  document.body.classList.add("busy");
  at("status").textContent = "Searching…";
  const instructions = [at("instruction").value];
  // An entry's own vector alone is under no instruction: both would be the same.
  const compared = at("beside").checked && (read || at("rerank").checked);
  if (compared) instructions.push(at("instruction2").value);
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
    const shown = { wanted: kind(), titled: answers.length > 1, liked: Boolean(state.like) };
    const columns = answers.map((answer) => column(answer, { like, enlarge }, shown));
    at("results").replaceChildren(...columns);
    at("results").classList.toggle("beside", answers.length > 1);
    const count = answers[0].hits.length;
    const lost = picture.data ? " The address cannot hold your picture; all else is in it." : "";
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
  forgetPicture();
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
  listenForPictures(at("pick"), at("file"), {
    most: Math.floor((about.limits.body_bytes - 65536) * 0.74),
    taken: () => {
      showChips();
      fitPresets();
      search();
    },
    refused: showProblem,
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
  addEventListener("popstate", follow);
  at("home").addEventListener("click", async (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", "/");
    await follow();
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
  await follow();
  if (!location.search) at("text").focus();
}

start().finally(() => document.body.classList.remove("starting"));
