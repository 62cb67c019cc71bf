// Results as elements. Whatever comes from the corpus is set by textContent and never as HTML.

export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const milliseconds = (value) => (value < 10 ? value.toFixed(1) : Math.round(value)) + " ms";
const percent = (share) => Math.round(100 * share) + "%";
const KIND_NAMES = { image: "image", text: "text", "image,text": "image + text" };

export const imageAddress = (id, size) =>
  "/api/image?" + new URLSearchParams({ id, size }).toString();

function costs(answer) {
  const parts = [];
  if (answer.batch) {
    const together = answer.batch > 1 ? ` (with ${answer.batch - 1} more)` : "";
    parts.push(["embed", milliseconds(answer.embed_ms) + together]);
  }
  const how = answer.method === "scann" ? "ScaNN" : "exact";
  parts.push([`${how}, ${answer.dimension} numbers`, milliseconds(answer.search_ms)]);
  if (answer.rerank_ms !== null) parts.push(["rerank", milliseconds(answer.rerank_ms)]);
  if (answer.recall !== null) parts.push(["recall vs exact", percent(answer.recall)]);
  return make(
    "dl",
    { class: "costs" },
    ...parts.map(([name, value]) =>
      make("div", {}, make("dt", { text: name }), make("dd", { text: value })),
    ),
  );
}

function shares(answer, wanted) {
  const present = Object.entries(answer.shares).filter(([, share]) => share > 0);
  const told = present
    .map(([kind, share]) => `${percent(share)} ${KIND_NAMES[kind]}`)
    .join(", ");
  const bar = make("span", { class: "bar", "aria-hidden": "true" });
  for (const [kind, share] of present) {
    const part = make("span", { class: "part " + kind.replace(",", "-") });
    part.style.flexGrow = String(share);
    bar.append(part);
  }
  const note = wanted ? "" : "of the results";
  return make("p", { class: "shares" }, bar, make("span", { text: `${told} ${note}`.trim() }));
}

function move(hit) {
  if (hit.previous_rank === null) return null;
  const steps = hit.previous_rank - hit.rank;
  const [kind, sign, words] =
    steps > 0
      ? ["up", "▲", `up ${steps} from rank ${hit.previous_rank}`]
      : steps < 0
        ? ["down", "▼", `down ${-steps} from rank ${hit.previous_rank}`]
        : ["same", "=", "same rank as before"];
  const shown = steps === 0 ? sign : sign + Math.abs(steps);
  return make("span", { class: "move " + kind, title: words, "aria-label": words, text: shown });
}

function scores(hit) {
  const told = [make("span", { class: "score", title: "Cosine", text: hit.score.toFixed(3) })];
  if (hit.rerank_score !== null) {
    told.push(
      make("span", {
        class: "chance",
        title: "The reranker's P(Yes)",
        text: "yes " + percent(hit.rerank_score),
      }),
    );
  }
  return told;
}

function content(entry, small) {
  const parts = [];
  if (entry.image) {
    parts.push(
      make("img", {
        src: imageAddress(entry.id, "small"),
        alt: entry.text || entry.name,
        loading: "lazy",
        decoding: "async",
      }),
    );
  }
  if (entry.gone) {
    parts.push(make("p", { class: "gone", text: "Its picture has gone since it was indexed." }));
  }
  if (entry.text !== null && !small) {
    parts.push(make("p", { class: "text", dir: "auto", lang: "", text: entry.text }));
  }
  return parts;
}

function copies(hit) {
  if (!hit.copies.length) return null;
  const list = make("ul");
  for (const copy of hit.copies) {
    list.append(
      make(
        "li",
        {},
        ...content(copy, true),
        make("span", { class: "name", dir: "auto", text: copy.name }),
      ),
    );
  }
  const count = hit.copies.length === 1 ? "1 copy" : `${hit.copies.length} copies`;
  return make("details", { class: "copies" }, make("summary", { text: "+ " + count }), list);
}

function card(hit, actions) {
  const label = `${hit.rank}. ${hit.text || hit.name}`;
  const face = make("div", { class: "face" }, ...content(hit, false));
  if (hit.image) {
    face.querySelector("img").addEventListener("click", () => actions.enlarge(hit));
  }
  const made = make(
    "li",
    { class: "hit " + hit.kind.replace(",", "-"), tabindex: "0", "data-id": hit.id, "aria-label": label },
    make(
      "div",
      { class: "top" },
      make("span", { class: "rank", text: String(hit.rank) }),
      move(hit),
      make("span", { class: "gap" }),
      ...scores(hit),
    ),
    face,
    make("p", { class: "name", dir: "auto", title: hit.name, text: hit.name }),
    make(
      "div",
      { class: "bottom" },
      make("span", { class: "kind", text: KIND_NAMES[hit.kind] }),
      make("button", {
        type: "button",
        class: "like",
        text: "More like this",
        "aria-label": `More like ${hit.text || hit.name}`,
        onclick: () => actions.like(hit),
      }),
    ),
    copies(hit),
  );
  made.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === made && hit.image) {
      event.preventDefault();
      actions.enlarge(hit);
    }
  });
  return made;
}

export function column(answer, actions, { wanted, titled, liked }) {
  const title = titled
    ? make("h2", { dir: "auto", text: answer.instruction || "Without an instruction" })
    : null;
  const list = make("ol", { class: "hits" }, ...answer.hits.map((hit) => card(hit, actions)));
  const none = liked ? "Nothing else of this kind is" : "Nothing of this kind is";
  const nothing = answer.hits.length
    ? null
    : make("p", { class: "nothing", text: `${none} in the collection.` });
  const bar = answer.hits.length ? shares(answer, wanted) : null;
  const head = make("div", { class: "head" }, title, bar, costs(answer));
  return make("div", { class: "column" }, head, nothing, list);
}

export function welcome(about) {
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

// Arrow keys among cards: left and right by one, up and down by a row as it lies on the screen.
export function moveFocus(event) {
  const here = event.target.closest?.(".hit");
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 0, ArrowDown: 0 };
  if (!here || event.target !== here || !(event.key in steps)) return;
  const cards = [...here.parentElement.children];
  const at = cards.indexOf(here);
  let to = cards[at + steps[event.key]];
  if (!steps[event.key]) {
    const row = here.offsetTop;
    const down = event.key === "ArrowDown";
    const others = cards.filter((one) => (down ? one.offsetTop > row : one.offsetTop < row));
    const near = down ? others[0]?.offsetTop : others.at(-1)?.offsetTop;
    const middle = here.offsetLeft + here.offsetWidth / 2;
    const away = (one) => Math.abs(one.offsetLeft + one.offsetWidth / 2 - middle);
    to = others.filter((one) => one.offsetTop === near).sort((a, b) => away(a) - away(b))[0];
  }
  if (to) {
    event.preventDefault();
    to.focus();
  }
}
