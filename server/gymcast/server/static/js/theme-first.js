// Runs before the first paint (a classic script in <head>), so that a stored choice of theme never flashes.
(function () {
  let stored = null;
  try {
    stored = localStorage.getItem("gymcast.theme");
  } catch (refused) {
    // Storage can be switched off in the browser; the system's preference then decides.
    stored = refused instanceof DOMException ? null : stored;
  }
  const dark = stored ? stored === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
