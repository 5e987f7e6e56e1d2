// Decisions about pairs, kept in localStorage under the dataset's fingerprint; CSV files of them.
const CHOICES = ["keep", "flip", "drop", "unsure"];

const openDecisions = (data) => {
  const key = `noisescope:decisions:${data.dataset}`;
  let kept = true;
  let found = {};
  const read = () => {
    try {
      const stored = JSON.parse(localStorage.getItem(key) || "{}");
      found = Object.fromEntries(Object.entries(stored).filter(([, one]) =>
        one && typeof one.note === "string" && ["", ...CHOICES].includes(one.decision)));
    } catch {
      kept = false; // this browser keeps nothing for files, or refuses to
    }
  };
  read();
  const write = () => {
    try {
      localStorage.setItem(key, JSON.stringify(found));
    } catch {
      kept = false;
    }
  };
  return {
    read,
    kept: () => kept,
    of: (id) => (Object.hasOwn(found, id) ? found[id] : { decision: "", note: "" }),
    set: (id, change) => {
      if (kept) read(); // another tab may have decided meanwhile
      const next = { decision: "", note: "", ...(Object.hasOwn(found, id) ? found[id] : {}), ...change };
      if (next.decision || next.note) found[id] = next;
      else delete found[id];
      write();
    },
    clear: () => {
      found = {};
      write();
    },
    all: () => Object.entries(found).filter(([, one]) => one.decision),
    isOurs: (event) => event.key === key || event.key === null,
  };
};

/** A cell that a spreadsheet does not take for a formula. */
const cell = (value) => {
  const text = value === undefined || value === null ? "" : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const inert = (value) => (/^[=+\-@\t\r]/.test(String(value)) ? `'${value}` : value);
const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";

const download = (name, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};

const decisionsFile = (data, decisions) => csv([
  ["pair_id", "decision", "note", "dataset"],
  ...decisions.all().map(([id, one]) => [id, one.decision, inert(one.note), data.dataset]),
]);

const listFile = (pairs, decisions) => csv([
  ["rank", "pair_id", "p_wrong", "annotator", "source", "row", "decision", "note",
    "prompt", "chosen", "rejected"],
  ...pairs.map((pair) => [
    pair.rank, pair.id, pair.p, pair.annotator, pair.source, pair.row,
    decisions.of(pair.id).decision, decisions.of(pair.id).note,
    ...["prompt", "chosen", "rejected"].map((name) => (pair[name] && pair[name].text) || ""),
  ].map((value) => (typeof value === "string" ? inert(value) : value))),
]);
