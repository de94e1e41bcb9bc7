// Search as you type, and impressions of what comes into view. Everything else works without.
(() => {
  const box = document.getElementById("q"), main = document.getElementById("main");
  let waiting = 0, running = null;

  async function show(query) {
    if (running) running.abort();
    running = new AbortController();
    const url = "/search?q=" + encodeURIComponent(query);
    try {
      const answer = await fetch(url + "&fragment=1", { signal: running.signal });
      if (!answer.ok) return;
      main.innerHTML = await answer.text();
      history.replaceState(null, "", url);
      watch();
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
  }

  box.addEventListener("input", () => {
    clearTimeout(waiting);
    const query = box.value.trim();
    if (query.length > 1) waiting = setTimeout(() => show(query), 150);
  });

  main.addEventListener("toggle", async ({ target }) => {
    if (!target.open || !target.dataset.why) return;
    const url = target.dataset.why + "&fragment=1";
    delete target.dataset.why;
    const answer = await fetch(url);
    if (answer.ok) target.querySelector("a").outerHTML = await answer.text();
  }, true);

  document.getElementById("user").addEventListener("change", (event) => event.target.form.submit());
  document.querySelector(".who button").hidden = true;

  const told = new Set();
  let queue = [];
  function send() {
    if (!queue.length) return;
    navigator.sendBeacon("/seen", JSON.stringify(queue.splice(0, 100)));
  }
  const eye = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      const request = target.parentElement.dataset.request, item = target.dataset.item;
      const key = request + " " + item;
      if (!isIntersecting || told.has(key)) continue;
      told.add(key);
      eye.unobserve(target);
      queue.push({ item, request, position: target.dataset.position });
    }
  }, { threshold: 0.5 });
  function watch() {
    for (const card of document.querySelectorAll("ul[data-request] > .card")) eye.observe(card);
  }
  watch();
  setInterval(send, 1000);
  document.addEventListener("visibilitychange", send);
  addEventListener("pagehide", send);
})();
