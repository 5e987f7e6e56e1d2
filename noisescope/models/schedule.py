"""Read a pipeline's forward process and its denoiser's target from the class of its scheduler.

    schedule = schedule_of("FlowMatchEulerDiscreteScheduler", config, tokens=1024)
    schedule.noisy(latents, t, eps), schedule.target(latents, t, eps)  # t: steps 0 .. T - 1

Input and target of every supported denoiser are linear in the latent z and the noise eps, so a
schedule is a few tables. A scheduler whose process is not known here is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

from noisescope.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

Density = Literal["uniform", "logit_normal"]
FLOW_PREDICTION = "flow_prediction"
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


@final
@dataclass(frozen=True)
class Schedule:
    """What a denoiser sees and predicts at each of T steps, from the least noise to the most.

    input = signal z + noise eps, target = to_latent z + to_noise eps, each a table [T]; `times` [T]
    are the steps in the model's own units. Training draws steps by `density`.
    """

    signal: Tensor
    noise: Tensor
    to_latent: Tensor
    to_noise: Tensor
    times: Tensor
    kind: Literal["ddpm", "edm", "flow"] = "ddpm"
    density: Density = "uniform"

    @property
    def steps(self) -> int:
        """T."""
        return len(self.times)

    def noisy(self, latents: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The denoiser's input for latents [B, C, H, W] at steps t [B]."""
        return _mixed(self.signal, self.noise, latents, t, eps)

    def target(self, latents: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the denoiser should predict from `noisy`."""
        return _mixed(self.to_latent, self.to_noise, latents, t, eps)

    def drawn(self, u: float) -> int:
        """The step at quantile u (0 to below 1) of the density that training draws from."""
        if self.density == "logit_normal":
            from scipy.special import expit, ndtri

            u = float(expit(ndtri(u)))  # mean 0, standard deviation 1 (2403.03206, section 3.1)
        return min(int(u * self.steps), self.steps - 1)

    def at(self, share: float) -> int:
        """The step at a share (0 to below 1) of the schedule.

        Of EDM and flow the step with the noise-to-signal ratio that Stable Diffusion's schedule has
        at that share: what a share was chosen for does not depend on how steps are spaced.
        """
        if self.kind == "ddpm":
            return int(share * self.steps)
        import torch
        from diffusers import DDPMScheduler

        alphas = DDPMScheduler(**STABLE_DIFFUSION).alphas_cumprod
        keep = alphas[int(share * len(alphas))]
        ratio = ((1 - keep) / keep).sqrt()
        return min(int(torch.searchsorted(self.noise / self.signal, ratio)), self.steps - 1)


def _mixed(of_latent: Tensor, of_noise: Tensor, latents: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """of_latent[t] z + of_noise[t] eps."""
    a, b = (
        table.to(latents.device)[t].to(latents.dtype).view(-1, 1, 1, 1)
        for table in (of_latent, of_noise)
    )
    mixed: Tensor = a * latents + b * eps
    return mixed


def scheduler_classes() -> dict[str, Any]:
    """diffusers' schedulers whose forward process is known here, by class name."""
    import diffusers as d

    known = (
        d.DDIMScheduler,
        d.DDPMScheduler,
        d.DEISMultistepScheduler,
        d.DPMSolverMultistepScheduler,
        d.DPMSolverSinglestepScheduler,
        d.EDMDPMSolverMultistepScheduler,
        d.EDMEulerScheduler,
        d.EulerAncestralDiscreteScheduler,
        d.EulerDiscreteScheduler,
        d.FlowMatchEulerDiscreteScheduler,
        d.HeunDiscreteScheduler,
        d.KDPM2AncestralDiscreteScheduler,
        d.KDPM2DiscreteScheduler,
        d.LCMScheduler,
        d.LMSDiscreteScheduler,
        d.PNDMScheduler,
        d.UniPCMultistepScheduler,
    )
    return {scheduler.__name__: scheduler for scheduler in known}


def schedule_of(
    name: str,
    config: Mapping[str, Any],
    *,
    density: Density = "uniform",
    tokens: int | None = None,
) -> Schedule:
    """The schedule of a scheduler's class name and its `scheduler_config.json`.

    `density` is that of a flow. `tokens` of an image give a flow its shift if the config has
    use_dynamic_shifting. Raises ModelError for an unknown class or an unknown process.
    """
    known = scheduler_classes()
    if name not in known:
        raise ModelError(
            f"scheduler: {name} is not supported, its noise schedule is not known here",
            hint=f"Pipelines with one of these can be audited: {', '.join(known)}.",
        )
    if name.startswith("FlowMatch"):
        return _flow(name, config, density, tokens)
    if config.get("use_flow_sigmas") or config.get("prediction_type") == FLOW_PREDICTION:
        _require(name, config, "use_flow_sigmas", (True,))
        _require(name, config, "prediction_type", (FLOW_PREDICTION,))
        _require(name, config, "use_dynamic_shifting", (None, False))
        steps = config.get("num_train_timesteps", 1000)
        shift = config.get("flow_shift", 1.0)
        return _flow(name, {"num_train_timesteps": steps, "shift": shift}, density, None)
    _require(name, config, "prediction_type", (None, "epsilon", "v_prediction"))
    made = known[name].from_config(dict(config))
    return (_edm if name.startswith("EDM") else _ddpm)(name, made)


def _require(name: str, config: Mapping[str, Any], setting: str, known: tuple[object, ...]) -> None:
    """Raise ModelError if a setting has another value than the `known` ones."""
    if config.get(setting) not in known:
        values = ", ".join(str(value) for value in known if value is not None)
        raise ModelError(
            f"scheduler: {name} with {setting} {config.get(setting)} is not supported",
            hint=f"Pipelines whose scheduler has {setting} {values} can be audited.",
        )


def _ddpm(name: str, made: Any) -> Schedule:
    """z_t = sqrt(a_t) z + sqrt(1 - a_t) eps; the target is eps, or v of 2202.00512."""
    import torch

    _require(name, made.config, "timestep_type", (None, "discrete"))
    keep = made.alphas_cumprod
    signal, noise = keep.sqrt(), (1 - keep).sqrt()
    times = torch.arange(len(keep))
    if made.config.get("prediction_type", "epsilon") == "epsilon":
        return Schedule(signal, noise, torch.zeros_like(keep), torch.ones_like(keep), times)
    return Schedule(signal, noise, -noise, signal, times)


def _edm(name: str, made: Any) -> Schedule:
    """EDM (2206.00364, table 1): F(c_in (z + sigma eps), log(sigma) / 4) = (z - c_skip x) / c_out.

    The squared error of F is that of the denoised image under EDM's own weight (equation 8).
    """
    times = made.timesteps.flip(0)
    sigma = made.sigmas[: len(times)].flip(0)
    data = float(made.config["sigma_data"])
    total = (sigma**2 + data**2).sqrt()
    sign = {"epsilon": 1.0, "v_prediction": -1.0}[made.config["prediction_type"]]  # of c_out
    to_latent, to_noise = sign * sigma / (data * total), -sign * data / total
    return Schedule(1 / total, sigma / total, to_latent, to_noise, times, "edm")


def _flow(name: str, config: Mapping[str, Any], density: Density, tokens: int | None) -> Schedule:
    """x_t = (1 - t) z + t eps, target v = eps - z, with the pipeline's shift of t (2403.03206)."""
    import numpy as np
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    _require(name, config, "invert_sigmas", (None, False))
    own = {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal"}
    made = FlowMatchEulerDiscreteScheduler.from_config(
        {key: value for key, value in config.items() if key not in own}  # of sampling alone
    )
    if made.config.use_dynamic_shifting:
        if tokens is None:
            raise ModelError(
                f"scheduler: {name} with use_dynamic_shifting goes with a transformer, not a UNet",
                hint="Set shift and use_dynamic_shifting false as the UNet was trained.",
            )
        scale = made.config
        least, most = scale.base_image_seq_len, scale.max_image_seq_len
        slope = (scale.max_shift - scale.base_shift) / (most - least)
        mu = scale.base_shift + slope * (tokens - least)  # as the pipelines' calculate_shift
        steps = made.config.num_train_timesteps
        made.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    times = made.timesteps.flip(0)
    sigma = made.sigmas[: len(times)].flip(0)
    ones = torch.ones_like(sigma)
    return Schedule(1 - sigma, sigma, -ones, ones, times, "flow", density)
