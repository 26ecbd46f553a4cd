"""GLM-5's configuration for a transformers that does not know it.

sglang 0.5.9 serves ``GlmMoeDsaForCausalLM`` and pins transformers 4.57.1, which refuses its
``config.json``: model type ``glm_moe_dsa`` came with transformers 5. ``config.json`` names every
value that sglang reads, so a configuration class without further code is enough.
"""


def register() -> bool:
    """Make transformers' AutoConfig take model type ``glm_moe_dsa``; False if not needed."""
    from sglang.srt.rocm_patches import nsa_fp8_kv
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not nsa_fp8_kv.ACTIVE or "glm_moe_dsa" in CONFIG_MAPPING:
        return False

    class GlmMoeDsaConfig(PretrainedConfig):
        model_type = "glm_moe_dsa"
        keys_to_ignore_at_inference = ("past_key_values",)

        def __init__(self, rope_parameters=None, **values):
            """rope_parameters: transformers 5's form of version 4's rope_theta, rope_scaling."""
            if rope_parameters is not None:
                scaled = rope_parameters.get("rope_type", "default") != "default"
                self.rope_parameters = rope_parameters
                values.setdefault("rope_theta", rope_parameters["rope_theta"])
                values.setdefault("rope_scaling", rope_parameters if scaled else None)
            super().__init__(**values)

    AutoConfig.register("glm_moe_dsa", GlmMoeDsaConfig)
    return True
