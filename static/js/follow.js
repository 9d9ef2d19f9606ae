// Follow the text as it grows, unless the reader has scrolled up; then offer the way back.
import { oncePerFrame } from "./frame.js";

export function startFollowing(page) {
  const scroller = document.getElementById("scroller");
  const jump = document.getElementById("jump");
  let following = true;
  let last = 0;
  let ours = false; // the next scroll event tells of our own move

  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  const toEnd = () => {
    const before = scroller.scrollTop;
    scroller.scrollTop = scroller.scrollHeight;
    ours ||= scroller.scrollTop !== before;
  };

  scroller.addEventListener("scroll", () => {
    // Only the reader scrolls upwards; text that grew since the last frame has merely moved the end away.
    const upwards = scroller.scrollTop < last;
    last = scroller.scrollTop;
    if (ours) {
      ours = false;
      return;
    }
    if (atEnd()) following = true;
    else if (upwards) following = false;
    jump.hidden = following;
  }, { passive: true });

  // A fast answer goes back to its end in the very frame in which the reader turned the wheel: the scroll that would
  // tell never comes. Where a small turn leaves the end in sight, the scroll event above follows again.
  const away = () => {
    if (scroller.scrollTop > 0) following = false;
  };
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && away(), { passive: true });
  scroller.addEventListener("keydown", (event) => ["ArrowUp", "PageUp", "Home"].includes(event.key) && away());

  // A finger on the text, or the mouse on the scroll bar, moves by a few pixels at a time: what went back to its end
  // between two of them could never be left. So nothing moves under either until it lets go.
  let grasped = false;
  const grasp = () => {
    grasped = true;
  };
  const letGo = () => {
    grasped = false;
  };
  scroller.addEventListener("touchstart", grasp, { passive: true });
  for (const end of ["touchend", "touchcancel"]) scroller.addEventListener(end, letGo, { passive: true });
  scroller.addEventListener("pointerdown", (event) => event.pointerType === "mouse" && grasp());
  // The release of a scroll bar is told by no event of its own, only by the next move with no button pressed.
  window.addEventListener("pointerup", (event) => event.pointerType === "mouse" && letGo());
  window.addEventListener("pointermove", (event) => event.pointerType === "mouse" && !event.buttons && letGo());

  page.addEventListener("htmx:wsAfterMessage", oncePerFrame(() => {
    if (!following) jump.hidden = false;
    else if (!grasped) toEnd();
  }));
  page.addEventListener("htmx:wsBeforeSend", (event) => {
    if (JSON.parse(event.detail.message).type !== "start") return; // whoever stops an answer reads on where they are
    following = true;
  });
  jump.addEventListener("click", () => {
    toEnd();
    following = true;
    jump.hidden = true;
    scroller.focus();
  });
  toEnd();
}
