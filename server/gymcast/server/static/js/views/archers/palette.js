// Colours of the arena: dusk for the dark theme, morning for the light one.

const SEATS = {
  dark: [
    { main: "#ff7e4a", deep: "#c24c22", light: "#ffc4a1" },
    { main: "#4fa3f7", deep: "#2466b4", light: "#bcdcff" },
    { main: "#bd86f2", deep: "#7a48b5", light: "#e6d0ff" },
    { main: "#4fce95", deep: "#1f8a5b", light: "#c0f2da" },
  ],
  light: [
    { main: "#e2592a", deep: "#a5370f", light: "#ffc5a6" },
    { main: "#2f7fd1", deep: "#1b5290", light: "#bfddfa" },
    { main: "#9257cc", deep: "#613190", light: "#e0c8f7" },
    { main: "#229a67", deep: "#126540", light: "#b4ead1" },
  ],
};

const DUSK = {
  sky: [[0, "#0c1430"], [0.3, "#232d64"], [0.5, "#55467f"], [0.64, "#a8627f"], [0.76, "#e2956f"]],
  orb: { x: 612, y: 128, r: 30, core: "#fbf0d9", glow: "255, 236, 200" },
  stars: "#ffffff",
  clouds: "rgba(255, 214, 214, 0.10)",
  hills: ["#574c86", "#3c3c70", "#262b57"],
  mist: "rgba(229, 154, 114, 0.16)",
  stone: { base: [78, 86, 120], light: "rgba(190, 200, 240, 0.36)", dark: "rgba(14, 16, 38, 0.5)", joint: "#2a3052", rim: "#1d2140" },
  moss: { base: "#4f8f86", light: "#8cc9b0", deep: "#2c5a5f" },
  shadow: "rgba(8, 10, 30, 0.45)",
  outline: "#161a33",
  wood: "#e3c08e",
  steel: "#f0f4ff",
  leather: "#7b523a",
  skin: "#f2c9a5",
  text: "#f6f4ff",
  halo: "rgba(12, 14, 34, 0.78)",
  charge: "#ffe08a",
  vignette: "10, 10, 30",
  vignetteStrength: 0.3,
};

const MORNING = {
  sky: [[0, "#86bde2"], [0.45, "#b6dbec"], [0.75, "#e9ecdc"], [1, "#fbe3bd"]],
  orb: { x: 612, y: 128, r: 34, core: "#fffaea", glow: "255, 250, 225" },
  stars: null,
  clouds: "rgba(255, 255, 255, 0.55)",
  hills: ["#b3cdd2", "#93b9b8", "#729f98"],
  mist: "rgba(255, 246, 224, 0.4)",
  stone: { base: [176, 164, 146], light: "rgba(255, 252, 240, 0.6)", dark: "rgba(70, 56, 36, 0.34)", joint: "#8d8170", rim: "#6c6253" },
  moss: { base: "#74a14f", light: "#a2c973", deep: "#4d7a37" },
  shadow: "rgba(60, 60, 50, 0.3)",
  outline: "#2a2621",
  wood: "#8a5a2c",
  steel: "#5d6673",
  leather: "#6d4630",
  skin: "#f0c8a4",
  text: "#20242b",
  halo: "rgba(255, 255, 255, 0.82)",
  charge: "#c98a00",
  vignette: "90, 80, 60",
  vignetteStrength: 0.1,
};

/** @param {"light"|"dark"} theme */
export function paletteOf(theme) {
  return theme === "dark" ? DUSK_PALETTE : MORNING_PALETTE;
}

const DUSK_PALETTE = { ...DUSK, seats: SEATS.dark };
const MORNING_PALETTE = { ...MORNING, seats: SEATS.light };
