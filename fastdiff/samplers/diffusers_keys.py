"""The keys that a scheduler config may have without being read."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["BEYOND_CLASS", "DIFFUSERS_KEYS", "FLOW_CLASSES", "FORMER_KEYS"]

DIFFUSERS_KEYS = frozenset(
    {
        "algorithm_type",
        "alpha_cum_end",
        "alpha_cum_start",
        "base_image_seq_len",
        "base_shift",
        "beta_end",
        "beta_max",
        "beta_min",
        "beta_schedule",
        "beta_start",
        "block_length",
        "clip_denoised",
        "clip_sample",
        "clip_sample_range",
        "correct_steps",
        "corrector_k",
        "corrector_order",
        "corrector_selection",
        "corrector_selection_tau",
        "corrector_steps",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "editing_threshold",
        "entropy_bound",
        "eps",
        "eta",
        "euler_at_final",
        "final_sigmas_type",
        "final_step_size_scale",
        "flow_shift",
        "gamma",
        "gamma_cum_end",
        "gamma_cum_start",
        "interpolation_type",
        "invert_sigmas",
        "lambda_min_clipped",
        "lower_order_final",
        "mask_token_id",
        "masking_schedule",
        "max_image_seq_len",
        "max_shift",
        "minimal_topk",
        "n_grid",
        "noise_mode",
        "noise_sampler_seed",
        "num_inference_steps",
        "num_policy_substeps",
        "num_train_timesteps",
        "num_vec_classes",
        "original_inference_steps",
        "predict_x0",
        "prediction_type",
        "predictor_order",
        "rescale_betas_zero_snr",
        "rho",
        "s",
        "s_churn",
        "s_max",
        "s_min",
        "s_noise",
        "sample_max_value",
        "sampling_eps",
        "scale_factors",
        "scaler",
        "schedule_mode",
        "scheduler_type",
        "set_alpha_to_one",
        "shift",
        "shift_terminal",
        "sigma_data",
        "sigma_max",
        "sigma_min",
        "sigma_schedule",
        "skip_prk_steps",
        "snr",
        "snr_shift_scale",
        "solver_order",
        "solver_p",
        "solver_type",
        "stage_range",
        "stages",
        "steps_offset",
        "stochastic_sampling",
        "t_lim_ode",
        "t_lim_ode_below",
        "t_max",
        "t_min",
        "tail_step_multiplier",
        "tail_steps",
        "tau_func",
        "threshold",
        "thresholding",
        "time_shift_type",
        "timestep_scaling",
        "timestep_spacing",
        "timestep_type",
        "trained_betas",
        "tsr_k",
        "tsr_sigma",
        "upscale_mode",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    }
)
"""Every parameter of a scheduler class of diffusers 0.42. A sampler ignores those of other classes than its
own, as diffusers does when a config is used with another scheduler."""

FORMER_KEYS = frozenset({"tensor_format"})
"""Parameters of the first versions of diffusers, found in old checkpoints, that never changed a sample."""

FLOW_CLASSES = frozenset(
    {
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "LTXEulerAncestralRFScheduler",
    }
)
"""Classes of flow matching: their models predict the velocity, which their configs do not say."""

_LEVELS = frozenset(
    {
        "final_sigmas_type",
        "interpolation_type",
        "rho",
        "sigma_data",
        "timestep_type",
        "use_lu_lambdas",
    }
)
_CLIPPING = frozenset({"dynamic_thresholding_ratio", "sample_max_value", "thresholding"})
_CHURN = frozenset({"s_churn", "s_noise"})
BEYOND_CLASS: Mapping[str, frozenset[str]] = {
    "DEISMultistepScheduler": frozenset({"rho", "use_lu_lambdas"}),
    "DPMSolverMultistepScheduler": frozenset({"rho", "s_noise"}),
    "DPMSolverSDEScheduler": _LEVELS
    | _CLIPPING
    | {"clip_sample", "clip_sample_range", "rescale_betas_zero_snr", "s_noise"},
    "DPMSolverSinglestepScheduler": frozenset({"rho", "s_noise", "use_lu_lambdas"}),
    "EulerAncestralDiscreteScheduler": _LEVELS
    | {"s_noise", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"},
    "EulerDiscreteScheduler": _CHURN | {"rho", "sigma_data", "use_lu_lambdas"},
    "HeunDiscreteScheduler": _LEVELS | _CHURN | _CLIPPING | {"rescale_betas_zero_snr"},
    "KDPM2AncestralDiscreteScheduler": _LEVELS | {"rescale_betas_zero_snr", "s_noise"},
    "KDPM2DiscreteScheduler": _LEVELS | _CHURN | {"rescale_betas_zero_snr"},
    "LMSDiscreteScheduler": _LEVELS | {"rescale_betas_zero_snr"},
    "SASolverScheduler": frozenset({"rho", "time_shift_type", "use_dynamic_shifting", "use_lu_lambdas"}),
    "UniPCMultistepScheduler": frozenset({"rho", "use_lu_lambdas"}),
}
"""Options that a class's sampler has here and the class has not. In a checkpoint's config they are another
class's, and diffusers leaves them alone; in a call they are meant. ``sigma_min`` and ``sigma_max`` are not
among them: all classes with levels of Karras look for both."""
