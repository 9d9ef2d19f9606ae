// A chat page that behaves as badly as real ones: it replaces the nodes of an answer while it streams, moves them about,
// touches attributes for no reason, and writes the same text twice.

const main = document.querySelector("main");
let count = 0;

function render(id, text, state) {
  const article = document.createElement("article");
  Object.assign(article.dataset, { author: "assistant", messageId: id, state });
  const body = document.createElement("div");
  body.className = "text";
  body.textContent = text;
  article.append(body);
  return article;
}

async function answer(text, pieces, pause) {
  const id = `m${++count}`;
  let article = render(id, "", "streaming");
  main.append(article);
  const size = Math.ceil(text.length / pieces);
  for (let n = 0; n < pieces; n++) {
    const so_far = text.slice(0, (n + 1) * size);
    if (n % 5 === 4) {
      // A framework that has lost track of its nodes builds new ones.
      const fresh = render(id, so_far, "streaming");
      article.replaceWith(fresh);
      article = fresh;
    } else if (n % 5 === 2) {
      main.append(article); // moved to where it is already
      article.querySelector(".text").replaceChildren(so_far);
    } else {
      article.querySelector(".text").append(text.slice(n * size, (n + 1) * size));
    }
    article.dataset.state = "streaming";
    article.classList.toggle("odd");
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  article.dataset.state = "done";
}

document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const { text, pieces, pause } = Object.fromEntries(new FormData(event.target));
  answer(text, Number(pieces), Number(pause));
});
