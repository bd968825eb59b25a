/** Tell whether an element can be seen: in the window, and the page not hidden. Returns what ends it. */
export function watchSeen(element: HTMLElement, tell: (seen: boolean) => void): () => void {
  let inView = false;
  let told: boolean | null = null;
  const look = (): void => {
    const seen = inView && !document.hidden;
    if (seen !== told) {
      told = seen;
      tell(seen);
    }
  };
  const observer = new IntersectionObserver((entries) => {
    inView = entries.at(-1)?.isIntersecting ?? false;
    look();
  });
  observer.observe(element);
  document.addEventListener("visibilitychange", look);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", look);
  };
}
