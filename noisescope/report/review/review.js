"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const keys = { 1: "first", 2: "second", t: "tie", 0: "tie", s: "skip" };
  let state = null;
  let posting = false; // keys pressed meanwhile would answer a pair not yet seen
  let pending = Promise.resolve();
  let closed = false;

  const note = (text) => {
    find("note").textContent = text;
    find("note").hidden = !text;
  };

  const fill = (node, text) => {
    node.replaceChildren();
    const body = document.createElement("div");
    body.className = "text";
    body.dir = "auto";
    body.textContent = text.shown;
    node.append(body);
    if (text.cut) {
      const more = document.createElement("p");
      more.className = "cut";
      more.textContent = `… ${text.cut.toLocaleString("en")} more characters`;
      node.append(more);
    }
  };

  const picture = (node, key, name) => {
    const image = document.createElement("img");
    image.alt = name;
    image.addEventListener("error", () => {
      const lost = document.createElement("p");
      lost.className = "cut";
      lost.textContent = "This image cannot be shown. Skip the pair.";
      node.replaceChildren(lost);
    });
    image.src = `image/${encodeURIComponent(key)}`;
    node.replaceChildren(image);
  };

  const show = (next) => {
    const changed = !state || !next.pair || !state.pair || state.pair.id !== next.pair.id;
    state = next;
    find("count").textContent = `${state.done} of ${state.total}`;
    find("progress").max = Math.max(state.total, 1);
    find("progress").value = state.done;
    find("undo").disabled = !state.undo;
    const pair = state.pair;
    find("pair").hidden = !pair;
    find("done").hidden = Boolean(pair);
    for (const button of document.querySelectorAll("[data-answer]")) button.disabled = !pair;
    if (!pair || !changed) return;
    document.body.dataset.pair = pair.id;
    fill(find("prompt"), pair.prompt);
    find("shown").replaceChildren(...pair.shown.map((key, at) => {
      const node = document.createElement("div");
      picture(node, key, `Picture ${at + 1}`);
      return node;
    }));
    const earlier = find("earlier");
    earlier.hidden = !pair.earlier.shown;
    earlier.open = false;
    earlier.querySelector(".text").textContent = pair.earlier.shown;
    pair.sides.forEach((side, at) => {
      const node = find(`side-${at + 1}`).querySelector(".content");
      if (side.image) picture(node, side.image, `Answer ${at + 1}`);
      else fill(node, side.text);
      node.scrollTop = 0;
    });
    window.scrollTo(0, 0);
    find("pair").focus({ preventScroll: true });
  };

  const send = (path, body) => {
    if (posting || closed) return;
    posting = Boolean(body);
    pending = pending.then(() => request(path, body));
  };

  const request = async (path, body) => {
    try {
      const reply = await fetch(path, body && {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
      if (reply.status === 507) {
        const why = await reply.json();
        note(`Not saved: ${why.error} ${why.hint}`);
        return;
      }
      if (!reply.ok && reply.status !== 409) throw new Error(String(reply.status));
      show(await reply.json());
      note(reply.status === 409 ? "This pair was answered in another tab. Here is the next one." : "");
      if (path === "finish") {
        closed = true;
        find("pair").hidden = true;
        find("bar").hidden = true;
        find("done").hidden = false;
        find("done").querySelector("h1").textContent = "Saved";
        find("done").querySelector("p").textContent =
          "Your answers are in the run. You can close this tab; the terminal has the result.";
      }
    } catch {
      note("The review has ended or cannot be reached: nothing was saved just now. " +
        "Type the noisescope review command again; every answer up to here is kept.");
    } finally {
      if (body) posting = false;
    }
  };

  const answer = (choice) => {
    if (state && state.pair) send("answer", { pair: state.pair.id, answer: choice });
  };
  const undo = () => state && state.undo && send("undo", { done: state.done });

  for (const button of document.querySelectorAll("[data-answer]"))
    button.addEventListener("click", () => answer(button.dataset.answer));
  find("undo").addEventListener("click", undo);
  find("finish").addEventListener("click", () => send("finish", {}));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toLowerCase();
    if (key in keys) answer(keys[key]);
    else if (key === "u") undo();
    else return;
    event.preventDefault();
  });
  window.addEventListener("focus", () => state && send("state"));
  send("state");
})();
