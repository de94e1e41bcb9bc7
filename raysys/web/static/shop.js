// Search as you type, and impressions of what comes into view. Everything else works without.
(() => {
  const box = document.getElementById("q"), main = document.getElementById("main");
  const said = document.getElementById("said"); // stays, so that what is new in `main` is read out
  let waiting = 0, running = null;

  // a part of a page, also one that says why there is no other
  const part = (url, more) => fetch(url + "&fragment=1", { headers: { Accept: "text/html" }, ...more });
  const isPage = (answer) => (answer.headers.get("content-type") || "").startsWith("text/html");

  async function show(query) {
    if (running) running.abort();
    running = new AbortController();
    const url = "/search?q=" + encodeURIComponent(query);
    try {
      const answer = await part(url, { signal: running.signal });
      if (!isPage(answer)) return;
      main.innerHTML = await answer.text();
      said.textContent = main.querySelector("h1").textContent;
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
    const url = target.dataset.why, link = target.querySelector("a");
    delete target.dataset.why;
    const answer = await part(url);
    if (answer.ok) {
      link.outerHTML = await answer.text();
      return;
    }
    target.dataset.why = url; // opened again, it asks again
    if (!isPage(answer)) return;
    const told = new DOMParser().parseFromString(await answer.text(), "text/html");
    said.textContent = link.textContent = told.querySelector("h1").textContent;
  }, true);

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
