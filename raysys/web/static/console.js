// The live page renews its tables; a page out of sight does not ask.
(() => {
  const box = document.getElementById("live");
  setInterval(async () => {
    if (document.hidden) return;
    const answer = await fetch("/console/live?fragment=1", { redirect: "error" }).catch(() => null);
    if (answer && answer.ok) box.innerHTML = await answer.text();
  }, Number(box.dataset.every));
})();
