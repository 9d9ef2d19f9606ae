// Nothing here but the colours.
import { startThemeButton } from "./theme-button.js";

startThemeButton();
