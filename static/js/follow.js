// Follow the text as it grows, unless the reader has scrolled up; then offer the way back.

export function startFollowing(page) {
  const scroller = document.getElementById("scroller");
  const jump = document.getElementById("jump");
  let following = true;

  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  const toEnd = () => {
    scroller.scrollTop = scroller.scrollHeight;
  };

  scroller.addEventListener("scroll", () => {
    following = atEnd();
    jump.hidden = following;
  }, { passive: true });

  page.addEventListener("htmx:wsAfterMessage", () => {
    if (following) toEnd();
    else jump.hidden = false;
  });
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
