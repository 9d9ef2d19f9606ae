// Follow the text as it grows, unless the reader has scrolled up; then offer the way back.
import { oncePerFrame } from "./frame.js";

export function startFollowing(page) {
  const scroller = document.getElementById("scroller");
  const jump = document.getElementById("jump");
  let following = true;
  let last = 0;

  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  const toEnd = () => {
    scroller.scrollTop = scroller.scrollHeight;
  };

  scroller.addEventListener("scroll", () => {
    // Only the reader scrolls upwards; text that grew since the last frame has merely moved the end away.
    const upwards = scroller.scrollTop < last;
    last = scroller.scrollTop;
    if (atEnd()) following = true;
    else if (upwards) following = false;
    jump.hidden = following;
  }, { passive: true });

  page.addEventListener("htmx:wsAfterMessage", oncePerFrame(() => {
    if (following) toEnd();
    else jump.hidden = false;
  }));
  page.addEventListener("htmx:wsBeforeSend", () => {
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
