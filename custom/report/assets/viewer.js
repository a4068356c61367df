"use strict";
// The viewer of a reconstruction's report, on NiiVue. Everything it shows is in the page; nothing is fetched.
(() => {
  const part = (name) => document.getElementById(name);
  const text = (name) => part(name).textContent;
  document.documentElement.classList.add("scripted");

  for (const slider of document.querySelectorAll(".blend input")) {
    const over = slider.closest("figure").querySelector(".over");
    const blend = () => { over.style.opacity = slider.value; };
    slider.addEventListener("input", blend);
    blend();
  }

  if (!part("viewer")) return;
  const canvas = part("viewer-canvas");
  let nv, shown, at = [0.5, 0.5, 0.5];

  const window_hu = () => part("viewer-window").value.split(" ").map(Number);
  const open = (name, colormap, opacity, [low, high]) => niivue.NVImage.loadFromBase64({
    base64: text(name), name: `${name}.nii.gz`, colormap, opacity, cal_min: low, cal_max: high,
  });
  const arrange = () => {
    const chosen = part("viewer-layout").value;
    canvas.parentElement.classList.toggle("single", chosen !== "planes");
    nv.setSliceType(niivue.SLICE_TYPE[chosen === "planes" ? "MULTIPLANAR" : chosen.toUpperCase()]);
  };
  // Positions along right-left, back-front and foot-head, as shares of the volume: the crosshair without a mouse.
  const sliders = ["x", "y", "z"].map((axis) => part(`viewer-${axis}`));
  const move = (place) => {
    nv.scene.crosshairPos = place;
    nv.drawScene();
    nv.createOnLocationChange();
  };
  const report = (place) => {
    const [ct, spread] = place.values;
    const mm = (value, less, more) => `${Math.abs(value).toFixed(0)} mm ${value < 0 ? less : more}`;
    const words = [mm(place.mm[0], "left", "right"), mm(place.mm[1], "posterior", "anterior"),
      mm(place.mm[2], "inferior", "superior")];
    const value = `${Math.round(ct.value)} HU` + (spread ? ` ± ${Math.round(spread.value)} HU` : "");
    part("viewer-readout").textContent = `${value} at ${words.join(", ")} of the isocentre`;
    if (!place.frac) return;
    at = [...place.frac].slice(0, 3);
    at.forEach((share, axis) => {
      if (sliders[axis] !== document.activeElement) sliders[axis].value = share;
      sliders[axis].setAttribute("aria-valuetext", words[axis]);
    });
  };
  // A drag with the right button sets the grey levels, and the menu says to what.
  const own = document.createElement("option");
  const drawn = (volume) => {
    const [low, high] = [volume.cal_min, volume.cal_max].map(Math.round), menu = part("viewer-window");
    own.value = `${low} ${high}`;
    own.textContent = `Drawn, ${low} to ${high}`;
    menu.append(own);
    menu.value = own.value;
  };
  const state = (name, note) => {
    document.documentElement.classList.toggle("viewing", name === "ready");
    document.documentElement.dataset.viewer = name;
    part("viewer-note").textContent = note;
  };

  // Builds all of the viewer from the controls, so that it can be built anew.
  const start = async () => {
    try {
      if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2");
      const bytes = Uint8Array.from(atob(text("viewer-settings")), (c) => c.charCodeAt(0));
      const settings = JSON.parse(new TextDecoder().decode(bytes));
      document.documentElement.classList.add("viewing");
      nv?.cleanup();
      nv = new niivue.Niivue({
        logLevel: "error", dragAndDropEnabled: false, isRadiologicalConvention: true, sagittalNoseLeft: true,
        scrollRequiresFocus: true, isResizeCanvas: true, backColor: [0, 0, 0, 1], crosshairColor: [0.96, 0.76, 0.4, 0.8],
        crosshairWidth: 1, isColorbar: false, multiplanarPadPixels: 6, tileMargin: 0, isOrientationTextVisible: true,
        loadingText: "", multiplanarShowRender: 0, fontMinPx: 20, fontColor: [0.96, 0.76, 0.4, 1],
        showAllOrientationMarkers: true, crosshairWidthUnit: "mm",
      });
      await nv.attachToCanvas(canvas);
      nv.addColormap("spread", settings.colormap);
      shown = await open(part("viewer-volume").value, "gray", 1, window_hu());
      nv.addVolume(shown);
      if (settings.spread) {
        nv.addVolume(await open(settings.spread, "spread", Number(part("viewer-spread").value), settings.limits));
      }
      arrange();
      nv.onIntensityChange = drawn;
      nv.onLocationChange = report;
      move(at);
      if (nv.gl.isContextLost()) throw new Error("WebGL was lost");
      state("ready", "Click or drag in the planes to move the cross; after a click, scrolling leafs through them. A box drawn with the right button sets the window to what it holds.");
    } catch (error) {
      state("failed", `The viewer cannot run here (${error.message}); the picture below shows the reconstruction.`);
    }
  };

  part("viewer-layout").addEventListener("change", arrange);
  part("viewer-spread")?.addEventListener("change", (event) => nv.setOpacity(1, Number(event.target.value)));
  part("viewer-window").addEventListener("change", () => {
    [shown.cal_min, shown.cal_max] = window_hu();
    nv.updateGLVolume();
  });
  part("viewer-volume").addEventListener("change", async (event) => {
    const viewer = nv, other = await open(event.target.value, "gray", 1, window_hu());
    if (viewer !== nv) return; // built anew meanwhile, with what the menu says
    const place = [...nv.scene.crosshairPos];
    nv.addVolume(other);
    nv.setVolume(other, 0);
    nv.removeVolume(shown);
    shown = other;
    move(place);
  });
  for (const slider of sliders) slider.addEventListener("input", () => move(sliders.map((s) => Number(s.value))));

  // The graphics card may be reset or run out of memory: nothing that lay in it comes back.
  let started = start();
  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault(); // otherwise it is never given back
    state("lost", "The browser has lost the viewer's picture (WebGL); the picture below shows the reconstruction. The viewer comes back when the browser lets it; if it does not, load the page anew.");
  });
  canvas.addEventListener("webglcontextrestored", () => { started = started.then(start); });
})();
