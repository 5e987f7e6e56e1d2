"use strict";
(() => {
  const form = document.getElementById("filters");
  const count = document.getElementById("count");
  const list = document.getElementById("list");
  if (!form || !count || !list) return;
  const pairs = [...list.querySelectorAll(".pair")].map((node) => ({
    node,
    p: Number(node.dataset.p),
    u: Number(node.dataset.u),
    contested: Number(node.dataset.contested),
    rank: Number(node.dataset.rank),
    annotator: node.dataset.annotator,
    words: node.textContent.toLowerCase(),
  }));
  const value = (name) => form.elements[name].value;
  const least = (name) => (value(name) === "" ? -Infinity : Number(value(name)));
  const orders = {
    rank: (a, b) => a.rank - b.rank,
    u: (a, b) => b.u - a.u || a.rank - b.rank,
    contested: (a, b) => b.contested - a.contested || a.rank - b.rank,
  };
  const apply = () => {
    const words = value("words").trim().toLowerCase();
    const who = form.elements.annotator ? value("annotator") : "";
    const keep = (pair) =>
      pair.p >= least("p") && pair.u >= least("u") &&
      (value("contested") === "" || (value("contested") === "yes") === (pair.contested >= 0.8)) &&
      (who === "" || pair.annotator === who) && pair.words.includes(words);
    let shown = 0;
    for (const pair of pairs) {
      pair.node.hidden = !keep(pair);
      shown += pair.node.hidden ? 0 : 1;
    }
    for (const pair of [...pairs].sort(orders[value("order")])) list.append(pair.node);
    count.textContent = `${shown} of ${pairs.length} pairs shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  form.hidden = false;
  apply();
})();
