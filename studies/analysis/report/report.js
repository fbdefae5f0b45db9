// What a reader can do on the page: point at dots, switch series, sort and filter tables.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));

const tip = document.getElementById("tip");
const hideTip = () => { tip.hidden = true; };
document.querySelectorAll(".tip").forEach(dot => {
  const title = dot.querySelector("title"), text = title.textContent;
  title.remove(); // the browser's own would come late, and twice
  dot.setAttribute("aria-label", text);
  const show = event => {
    tip.textContent = text;
    tip.hidden = false;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, room)) + scrollX}px`;
    tip.style.top = `${event.clientY + 14 + scrollY}px`;
  };
  dot.addEventListener("pointerenter", show);
  dot.addEventListener("click", show);
  dot.addEventListener("pointerleave", hideTip);
});
addEventListener("scroll", hideTip, { passive: true });

document.querySelectorAll(".series button").forEach(button => button.addEventListener("click", () => {
  const { figure, number } = button.dataset, on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", on);
  const card = button.closest("figure").querySelector(".card");
  const parts = card.querySelectorAll(`[id^="${CSS.escape(figure)}-series-${number}-"], .tip[data-s="${number}"]`);
  parts.forEach(part => { part.style.display = on ? "" : "none"; });
}));

const order = (a, b) => {
  const x = a === "" ? -Infinity : Number(a), y = b === "" ? -Infinity : Number(b);
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y || 0;
};
const key = (row, i) => {
  const cell = row.cells[i];
  return cell.dataset.k ?? cell.textContent.trim().replace(/^([+-]?[\d.]+)( ±.*| \(.*)?$/, "$1");
};
document.querySelectorAll("table.sorts").forEach(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => head.firstElementChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => sign * order(key(a, i), key(b, i))));
  }));
});
document.querySelectorAll("input[data-filters]").forEach(input => {
  const body = document.getElementById(input.dataset.filters).tBodies[0];
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of body.rows)
      row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
});
