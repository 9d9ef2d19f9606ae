// Work that need not be done more often than it can be seen. A fast answer brings dozens of events between two frames;
// measuring or counting after each would lay the page out again each time.

export function oncePerFrame(work) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      work();
    });
  };
}
