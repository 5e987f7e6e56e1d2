// The list of pairs: filters, pages, keys, decisions. Dataset text only ever becomes textContent.
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const decisions = openDecisions(data);
  const byId = new Map(data.pairs.map((pair) => [pair.id, pair]));
  const form = find("filters"), list = find("list");
  const PAGE = 20;
  const number = (value) => value.toLocaleString("en");
  let shown = data.pairs; // as filtered
  let current = 0; // its place among them
  let page = -1;

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // Filters

  const bin = (pair) => String(data.bins.findIndex(([least]) => (pair.p ?? -1) >= least));
  const tests = {
    words: (pair, value) => pair.id === value ||
      value.toLowerCase().split(/\s+/).every((word) => words(pair).includes(word)),
    worst: (pair, value) => pair.rank <= Number(value),
    p: (pair, value) => bin(pair) === value,
    annotator: (pair, value) => pair.annotator === value,
    source: (pair, value) => pair.source === value,
    issue: (pair, value) => pair.issue === value,
    decision: (pair, value) => (decisions.of(pair.id).decision || "none") === value,
    reviewed: (pair, value) => (pair.reviewed || "none") === value,
    known: (pair, value) => (pair.known || "none") === value,
  };
  const words = (pair) => {
    pair.words ??= ["earlier", "prompt", "chosen", "rejected"]
      .map((name) => (pair[name] && pair[name].text) || "").join("\n").toLowerCase();
    return pair.words;
  };
  const here = (test) => data.pairs.reduce((sum, pair) => sum + test(pair), 0);
  /** How many pairs have a value: of all pairs, and of those on the page if these are fewer. */
  const counted = (name, all, value) => {
    const listed = data.pairs.length < data.total ? here((pair) => tests[name](pair, value)) : all;
    return listed === all ? number(all) : `${number(all)}, ${number(listed)} on this page`;
  };

  const addSelect = (name, title, options) => {
    const box = make("div"), label = make("label", "", title), select = make("select");
    label.htmlFor = select.id = `f-${name}`;
    select.name = name;
    for (const [value, text] of options) {
      const option = make("option", "", text);
      option.value = value;
      select.append(option);
    }
    box.append(label, select);
    form.append(box);
  };
  const facet = (name, title) => {
    const rows = data.facets[name];
    if (!rows) return;
    const all = [["", "all"]];
    addSelect(name, title, all.concat(rows.map(([value, count]) =>
      [value, `${value} (${counted(name, count, value)})`])));
  };
  const listed = (name, title) => {
    const values = [...new Set(data.pairs.map((pair) => pair[name]).filter(Boolean))].sort();
    if (!values.length) return;
    addSelect(name, title, [["", "all"], ...values.map((value) =>
      [value, `${value} (${number(here((pair) => pair[name] === value))})`])]);
  };
  const decisionOptions = () => [["", "all"], ...["none", ...CHOICES].map((value) => {
    const count = here((pair) => tests.decision(pair, value));
    return [value, `${value === "none" ? "not decided" : value} (${number(count)})`];
  })];

  const buildFilters = () => {
    const sizes = data.counts.filter((size) => size < data.pairs.length);
    if (sizes.length)
      addSelect("worst", "Most suspicious", [["", `all (${number(data.pairs.length)})`],
        ...sizes.map((size) => [String(size), `${number(size)} pairs`])]);
    addSelect("p", "p_wrong", [["", "all"], ...data.bins.map(([, text], at) =>
      [String(at), `${text} (${counted("p", data.facets.p_wrong[at][1], String(at))})`])]);
    facet("annotator", "Annotator");
    facet("source", "Source");
    facet("issue", "Issue");
    addSelect("decision", "Decision", decisionOptions());
    listed("reviewed", "Reviewed");
    listed("known", "Truth");
    const clear = make("button", "", "Clear");
    clear.type = "reset";
    const box = make("div");
    box.append(clear);
    form.append(box);
    form.hidden = false;
  };

  const filter = () => {
    const active = [...new FormData(form)].filter(([, value]) => value.trim());
    shown = data.pairs.filter((pair) => active.every(([name, value]) => tests[name](pair, value.trim())));
    current = 0;
    page = -1;
    render();
  };

  // Cards

  const side = (pair, name, letter, marked) => {
    const box = make("div", `side ${name}`), content = pair[name] || {};
    const heading = make("h4", "", `${letter} · ${name === "chosen" ? "the label’s choice" : "rejected by the label"}`);
    if (pair.prefers === name) heading.append(make("span", "prefers", "✓ the judge prefers this"));
    box.append(heading);
    if (content.image !== undefined) {
      const image = make("img");
      image.src = data.pictures[content.image];
      image.alt = `${name} image of pair ${pair.rank}`;
      box.append(image);
      return box;
    }
    box.append(text(content, marked));
    if (content.cut) box.append(make("p", "cut", `… ${number(content.cut)} more characters`));
    return box;
  };
  const text = (content, marked) => {
    const node = make("div", "text");
    node.dir = "auto";
    if (marked) showWords(node, marked);
    else node.textContent = (content && content.text) || "";
    return node;
  };

  const card = (pair) => {
    const node = make("article", "pair"), head = make("header"), title = make("h3");
    const link = make("a", "", `#${number(pair.rank)}`);
    link.href = `#pair=${encodeURIComponent(pair.id)}`;
    title.id = `pair-${pair.rank}`;
    title.append(link);
    node.setAttribute("aria-labelledby", title.id);
    node.tabIndex = -1;
    node.dataset.id = pair.id;
    head.append(title);
    const fact = (label, value, flag) => {
      const span = make("span", flag ? "flag" : "", label);
      if (value !== undefined) span.append(make("b", "", value));
      head.append(span);
    };
    if (pair.p !== undefined) fact("p_wrong ", pair.p.toFixed(3));
    if (pair.annotator) fact("by ", pair.annotator);
    fact("", `${pair.source || "row"}:${pair.row}`);
    if (pair.issue) fact("", pair.issue);
    if (pair.undecided) fact("the judge cannot decide", undefined, true);
    if (pair.known) fact(pair.known, undefined, true);
    if (pair.reviewed) fact(`reviewed: ${pair.reviewed}`, undefined, true);
    const copy = make("button", "id", pair.id);
    copy.type = "button";
    copy.title = "Copy this pair’s id";
    copy.setAttribute("aria-label", `Copy id ${pair.id}`);
    copy.addEventListener("click", () => copyId(pair, copy));
    head.append(copy);
    const prompt = make("div", "prompt");
    if (pair.earlier) {
      const details = make("details");
      details.append(make("summary", "", "Earlier in the conversation"), text(pair.earlier));
      prompt.append(details);
    }
    prompt.append(text(pair.prompt));
    for (const [at, content] of (pair.shown || []).entries()) {
      const image = make(content.image === undefined ? "p" : "img", "", content.text);
      if (content.image !== undefined) image.src = data.pictures[content.image];
      image.alt = `picture ${at + 1} of the prompt of pair ${pair.rank}`;
      prompt.append(image);
    }
    if (pair.prompt && pair.prompt.cut)
      prompt.append(make("p", "cut", `… ${number(pair.prompt.cut)} more characters`));
    const sides = make("div", "sides");
    const both = ["chosen", "rejected"].map((name) => (pair[name] && pair[name].text) || "");
    const marked = both.every(Boolean) ? compareWords(...both) : null;
    sides.append(side(pair, "chosen", "A", marked && marked[0]), side(pair, "rejected", "B", marked && marked[1]));
    node.append(head, prompt, sides, controls(pair));
    node.addEventListener("focusin", () => setCurrent(shown.indexOf(pair)));
    node.addEventListener("pointerdown", () => setCurrent(shown.indexOf(pair)));
    return node;
  };

  const meanings = { keep: "Keep the label", flip: "Flip: B is better", drop: "Drop the pair", unsure: "Unsure" };
  const controls = (pair) => {
    const box = make("div", "controls");
    for (const choice of CHOICES) {
      const button = make("button", `choice ${choice}`);
      button.type = "button";
      button.dataset.choice = choice;
      button.append(make("kbd", "", choice[0].toUpperCase()), meanings[choice]);
      button.addEventListener("click", () => decide(pair, choice));
      box.append(button);
    }
    const note = make("input", "note");
    note.placeholder = "note";
    note.setAttribute("aria-label", `Note on pair ${pair.rank}`);
    note.addEventListener("change", () => {
      decisions.set(pair.id, { note: note.value.trim() });
      update();
    });
    box.append(note);
    return box;
  };

  const state = (node) => {
    const { decision, note } = decisions.of(node.dataset.id);
    node.dataset.decision = decision;
    for (const button of node.querySelectorAll(".choice"))
      button.setAttribute("aria-pressed", String(button.dataset.choice === decision));
    const field = node.querySelector(".note");
    if (field !== document.activeElement) field.value = note;
  };

  const render = () => {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    const wanted = Math.min(Math.floor(current / PAGE), pages - 1);
    if (wanted !== page) {
      page = wanted;
      list.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(card));
      find("pages").replaceChildren(...turns(pages));
      find("pages").hidden = pages === 1;
    }
    update();
  };
  const turns = (pages) => {
    const turn = (label, to, off) => {
      const button = make("button", "button", label);
      button.type = "button";
      button.disabled = off;
      button.addEventListener("click", () => go(to * PAGE));
      return button;
    };
    return [
      turn("← Previous", page - 1, page === 0),
      make("span", "", `Page ${number(page + 1)} of ${number(pages)}`),
      turn("Next →", page + 1, page === pages - 1),
    ];
  };

  /** Everything that depends on decisions. */
  const update = () => {
    for (const node of list.children) {
      state(node);
      node.classList.toggle("current", shown[current] && node.dataset.id === shown[current].id);
    }
    const from = shown.length ? page * PAGE + 1 : 0;
    const range = `Pairs ${number(from)} to ${number(Math.min(from + PAGE - 1, shown.length))}`;
    const few = data.pairs.length < data.total
      ? ` The ${number(data.pairs.length)} most suspicious of ${number(data.total)} pairs are on this page.` : "";
    find("count").textContent = shown.length
      ? `${range} of ${number(shown.length)} that match; ${number(data.total)} in all.${few}`
      : `No pair matches.${few}`;
    find("tally").textContent = tally();
    const select = form.elements.decision;
    decisionOptions().forEach(([, label], at) => {
      select.options[at].textContent = label;
    });
  };
  const tally = () => {
    const done = shown.filter((pair) => decisions.of(pair.id).decision).length;
    const all = decisions.all();
    const judged = all.filter(([, one]) => ["keep", "flip"].includes(one.decision));
    const wrong = judged.filter(([, one]) => one.decision === "flip").length;
    const known = judged.map(([id]) => byId.get(id)).filter((pair) => pair && pair.p !== undefined);
    const parts = [`${number(done)} of ${number(shown.length)} done`];
    if (judged.length) {
      const expected = known.reduce((sum, pair) => sum + pair.p, 0);
      parts.push(`${number(wrong)} of ${number(judged.length)} were really wrong so far` +
        (known.length === judged.length ? ` (the audit expected ${expected.toFixed(1)})` : ""));
    }
    if (!decisions.kept()) parts.push("this browser keeps nothing: download before you close the page");
    return parts.join(" · ");
  };

  // Moves and decisions

  const setCurrent = (at) => {
    if (at < 0 || at === current) return;
    current = at;
    update();
  };
  const nodeOf = (at) => list.children[at - page * PAGE];
  const go = (at, focus = true) => {
    if (!shown.length) return;
    current = Math.max(0, Math.min(at, shown.length - 1));
    render();
    const node = nodeOf(current);
    node.scrollIntoView({ block: "start" });
    if (focus) node.focus({ preventScroll: true });
  };
  const visible = () => {
    const node = nodeOf(current);
    if (!node) return false;
    const box = node.getBoundingClientRect();
    return box.bottom > 80 && box.top < window.innerHeight - 80;
  };
  const decide = (pair, decision) => {
    const before = decisions.of(pair.id).decision;
    decisions.set(pair.id, { decision: before === decision ? "" : decision });
    update();
  };
  const copyId = async (pair, button) => {
    try {
      await navigator.clipboard.writeText(pair.id);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(button);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1200);
  };

  const keys = { k: "keep", f: "flip", d: "drop", u: "unsure" };
  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input, select, textarea, pre, .table")) return;
    const key = event.key.toLowerCase(), pair = shown[current];
    if (!pair) return;
    const moves = { j: 1, arrowright: 1, arrowleft: -1 };
    if (!(key in keys) && !(key in moves) && !["z", "c"].includes(key)) return;
    event.preventDefault();
    if (!visible()) go(current); // nobody decides about a pair that is out of sight
    else if (key in moves) go(current + moves[key]);
    else if (key === "c") copyId(pair, nodeOf(current).querySelector(".id"));
    else {
      decisions.set(pair.id, { decision: keys[key] || "" });
      if (key in keys && current < shown.length - 1) go(current + 1);
      else update();
    }
  };

  // Links to pairs and filters

  const empty = () => {
    for (const field of form.elements) if (field.name) field.value = "";
  };
  const follow = () => {
    const [name, ...rest] = location.hash.slice(1).split("=");
    let value;
    try {
      value = decodeURIComponent(rest.join("="));
    } catch {
      return;
    }
    if (!value) return;
    if (name === "pair") {
      if (!byId.has(value)) {
        find("count").textContent = `Pair ${value} is not on this page.`;
        find("review").scrollIntoView();
        return;
      }
      if (!shown.includes(byId.get(value))) {
        empty();
        filter();
      }
      go(shown.indexOf(byId.get(value)));
    } else if (["annotator", "source", "worst"].includes(name)) {
      empty();
      const select = form.elements[name];
      if (select && [...select.options].some((option) => option.value === value)) select.value = value;
      filter();
      find("review").scrollIntoView();
      if (shown.length) nodeOf(0).focus({ preventScroll: true });
    }
  };

  buildFilters();
  form.elements.words.addEventListener("input", filter);
  form.addEventListener("change", (event) => event.target.matches("select") && filter());
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) follow(); // no hashchange then
  });
  window.addEventListener("storage", (event) => {
    if (!decisions.isOurs(event)) return;
    decisions.read();
    update();
  });
  for (const button of document.querySelectorAll("[data-download]")) {
    button.hidden = false;
    button.addEventListener("click", () => (button.dataset.download === "list"
      ? download("suspects.csv", listFile(shown, decisions))
      : download("decisions.csv", decisionsFile(data, decisions))));
  }
  find("forget").addEventListener("click", () => {
    if (!window.confirm("Clear all decisions and notes about this dataset in this browser?")) return;
    decisions.clear();
    update();
  });
  for (const name of ["progress", "forget"]) find(name).hidden = false;
  filter();
  follow();
})();
