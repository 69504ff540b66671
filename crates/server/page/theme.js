// Runs before anything is painted, so that the page does not flash in the other theme.
try {
  const theme = localStorage.getItem("hurtle.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No storage: the system's theme holds.
}
