"use strict";
(() => {
  const one = (id) => document.getElementById(id);
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };

  // The theme: the system's, until the button is pressed.
  const theme = one("theme");
  const dark = () =>
    (document.documentElement.dataset.theme ||
      (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const named = () => {
    theme.textContent = dark() ? "light" : "dark";
    theme.setAttribute("aria-pressed", String(dark()));
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    named();
  });
  named();

  // Sorting: by number where every filled cell of the column begins with one, else by text.
  const number = (text) => {
    const found = /^[^\d+-]{0,2}([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)/.exec(text);
    return found ? parseFloat(found[1]) : NaN;
  };
  const sort = (table, column, down) => {
    const body = table.tBodies[0];
    const value = (row) => row.cells[column].textContent.trim();
    const rows = [...body.rows];
    const filled = rows.map(value).filter((text) => text && text !== "?");
    const numeric = filled.every((text) => !Number.isNaN(number(text)));
    const key = (row) => (numeric ? number(value(row)) : value(row));
    rows.sort((a, b) => {
      const x = key(a), y = key(b);
      if (numeric && (Number.isNaN(x) || Number.isNaN(y)))
        return Number(Number.isNaN(x)) - Number(Number.isNaN(y));
      const order = numeric ? x - y : x.localeCompare(y);
      return down ? -order : order;
    });
    body.append(...rows);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.querySelectorAll("th")) {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, head.cellIndex, down);
      });
    }
  }

  // A cell: its data are compressed JSON beside the tables.
  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(one(id).textContent), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const text = (label, value) => {
    const part = document.createDocumentFragment();
    if (value === null) {
      part.append(make("p", `${label}: none`));
    } else if (typeof value === "string") {
      part.append(make("p", label), make("div", value, "said-text"));
    } else {
      part.append(make("p", `${label}: withheld, ${value.length} characters, sha256 ${value.sha256}…`));
    }
    return part;
  };
  const attempt = (cell, said) => {
    const node = make("div", undefined, "attempt");
    const line = make("p");
    line.append(make("span", said.outcome, `outcome ${said.outcome}`));
    const facts = [`step ${said.step}`];
    if (said.tag) facts.push(`variant ${said.tag}`);
    if (cell.seeds.length > 1) facts.push(`seed ${said.seed}`);
    facts.push(said.final ? "final" : "not final", `${said.access} access`);
    if (said.loss !== null) facts.push(`loss ${said.loss}`);
    const scores = cell.judges.map((judge, i) => `${judge} ${said.scores[i] ?? "?"}`);
    line.append(`${facts.join(" · ")} · scores: ${scores.join(", ")}`);
    node.append(line, text("prompt", said.prompt), text("reply", said.reply));
    return node;
  };
  const behavior = (cell, asked) => {
    const node = make("details");
    const summary = make("summary");
    for (const outcome of asked.outcomes)
      summary.append(make("span", outcome, `outcome ${outcome}`));
    summary.append(make("b", asked.id), asked.category ? ` · ${asked.category}` : "");
    node.append(summary);
    node.addEventListener("toggle", () => {
      if (!node.open || node.dataset.made) return;
      node.dataset.made = "yes";
      if (asked.text) node.append(text("request", asked.text));
      for (const said of asked.attempts) node.append(attempt(cell, said));
    });
    return node;
  };
  const show = (cell) => {
    one("detail-title").textContent = `${cell.attack} on ${cell.defense}`;
    one("detail-note").textContent = cell.left_out
      ? `${cell.left_out} further attempts are in rows.jsonl of the run; here are the final ones and the worst.`
      : "Every recorded attempt is here.";
    const outcomes = [...new Set(cell.behaviors.flatMap((b) => b.outcomes))].sort();
    one("detail-outcome").replaceChildren(
      ...["all", ...outcomes].map((name) => new Option(name, name)));
    one("detail-filter").value = "";
    const list = () => {
      const outcome = one("detail-outcome").value;
      const words = one("detail-filter").value.toLowerCase();
      const kept = cell.behaviors.filter((b) =>
        (outcome === "all" || b.outcomes.includes(outcome)) &&
        `${b.id} ${b.category} ${b.text}`.toLowerCase().includes(words));
      one("detail-count").textContent = `${kept.length} of ${cell.behaviors.length} behaviors`;
      one("detail-list").replaceChildren(...kept.map((b) => behavior(cell, b)));
    };
    one("detail-outcome").onchange = list;
    one("detail-filter").oninput = list;
    list();
    one("detail").showModal();
  };
  for (const button of document.querySelectorAll("button[data-cell]"))
    button.addEventListener("click", async () => show(await unpack(button.dataset.cell)));

  // On paper everything is open.
  addEventListener("beforeprint", () => {
    for (const node of document.querySelectorAll("main details:not([open])")) {
      node.open = true;
      node.dataset.printed = "yes";
    }
  });
  addEventListener("afterprint", () => {
    for (const node of document.querySelectorAll("details[data-printed]")) {
      node.open = false;
      delete node.dataset.printed;
    }
  });
})();
