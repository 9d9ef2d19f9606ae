// The demo page: htmx applies the fragments, these modules do what htmx cannot.
import { startStream } from "./stream.js";
import { startAnnouncing } from "./announce.js";
import { startChoices } from "./choices.js";
import { startFollowing } from "./follow.js";
import { startComposer } from "./composer.js";
import { startPanel } from "./panel.js";
import { startThemeButton } from "./theme-button.js";

const page = document.getElementById("demo");
startStream(page);
startFollowing(page);
startComposer(page);
startChoices();
startPanel(page);
startAnnouncing(page);
startThemeButton();
