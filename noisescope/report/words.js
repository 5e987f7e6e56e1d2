"use strict";
// Differences of two texts, word by word.
const MOST_STEPS = 400000;
const LEAST_COMMON = 0.35;

/** Words of `a` and `b` and which of them the other side has in the same order; null if the texts
 * have little in common, or are too long to compare. */
const compareWords = (a, b) => {
  const parts = [a, b].map((text) => text.split(/(\s+)/));
  const [x, y] = parts.map((list) => list.filter((_, at) => at % 2 === 0));
  let start = 0;
  while (start < x.length && start < y.length && x[start] === y[start]) start += 1;
  let end = 0;
  while (end < Math.min(x.length, y.length) - start &&
    x[x.length - 1 - end] === y[y.length - 1 - end]) end += 1;
  const n = x.length - start - end, m = y.length - start - end;
  if (n * m > MOST_STEPS) return null;
  const length = new Uint16Array((n + 1) * (m + 1)); // of the longest common rest
  const at = (i, j) => i * (m + 1) + j;
  for (let i = n - 1; i >= 0; i -= 1)
    for (let j = m - 1; j >= 0; j -= 1)
      length[at(i, j)] = x[start + i] === y[start + j]
        ? length[at(i + 1, j + 1)] + 1
        : Math.max(length[at(i + 1, j)], length[at(i, j + 1)]);
  const same = [x, y].map((list) => list.map((_, k) => k < start || k >= list.length - end));
  for (let i = 0, j = 0; i < n && j < m;) {
    if (x[start + i] === y[start + j]) {
      same[0][start + i] = same[1][start + j] = true;
      i += 1;
      j += 1;
    } else if (length[at(i + 1, j)] >= length[at(i, j + 1)]) i += 1;
    else j += 1;
  }
  const common = same[0].filter(Boolean).length;
  if (common < LEAST_COMMON * Math.min(x.length, y.length)) return null;
  return parts.map((list, side) => list.map((text, k) => ({
    text, own: k % 2 === 0 && text !== "" && !same[side][k / 2],
  })));
};

/** Put `words` (texts, and whether only this side has them) into `node`. */
const showWords = (node, words) => {
  for (let k = 0; k < words.length;) {
    const own = words[k].own;
    let text = "";
    for (; k < words.length && words[k].own === own; k += 1) text += words[k].text;
    if (own) {
      const mark = document.createElement("mark");
      mark.textContent = text;
      node.append(mark);
    } else node.append(text);
  }
};
